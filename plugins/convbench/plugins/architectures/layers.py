"""`layers/<name>`: single layers with the shapes at which the architectures use them, for the suites `ops`
and `ladder`.

There is nothing to learn: a step is a forward pass and a backward pass from a random gradient, to the input,
the weight and the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from convbench.registry import Architecture, Problem, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Shape = tuple[int, int, int]


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, **options: Any
) -> Callable[[], nn.Module]:
    """A convolution layer, made when it is called."""

    def make() -> nn.Module:
        from torch import nn

        return nn.Conv2d(in_channels, out_channels, kernel_size, **options)

    return make


def pooling(kind: str, kernel_size: int, **options: Any) -> Callable[[], nn.Module]:
    """A pooling layer, `MaxPool2d` or `AvgPool2d`, made when it is called."""

    def make() -> nn.Module:
        from torch import nn

        return getattr(nn, kind)(kernel_size, **options)  # type: ignore[no-any-return]  # either is a module

    return make


# name: what it is, the input of one image, the layer, images per step
LAYERS: dict[str, tuple[str, Shape, Callable[[], Any], int]] = {
    "lenet-conv1": ("LeNet's first, 6 5x5", (1, 28, 28), convolution(1, 6, 5, padding=2), 128),
    "lenet-conv2": ("LeNet's second, 16 5x5", (6, 14, 14), convolution(6, 16, 5), 128),
    "lenet-pool1": ("LeNet's first pooling", (6, 28, 28), pooling("AvgPool2d", 2, stride=2), 128),
    "first-3x3": (
        "narrow VGG's first at 28 pixels, 16 3x3",
        (1, 28, 28),
        convolution(1, 16, 3, padding=1),
        128,
    ),
    "vgg-narrow": ("narrow VGG's at 128 pixels, 32 3x3", (16, 64, 64), convolution(16, 32, 3, padding=1), 32),
    "vgg-narrow-small": (
        "narrow VGG's at 64 pixels, 32 3x3",
        (16, 32, 32),
        convolution(16, 32, 3, padding=1),
        32,
    ),
    "vgg-pool": ("narrow VGG's pooling at 128 pixels", (32, 64, 64), pooling("MaxPool2d", 2, stride=2), 32),
    "resnet-stem": ("ResNet's first, 64 7x7", (1, 96, 96), convolution(1, 64, 7, stride=2, padding=3), 32),
    "resnet-pool": ("ResNet's pooling", (64, 48, 48), pooling("MaxPool2d", 3, stride=2, padding=1), 32),
    "resnet-block": ("a residual block's, 64 3x3", (64, 24, 24), convolution(64, 64, 3, padding=1), 32),
    "resnet-shortcut": ("a shortcut's, 128 1x1", (64, 24, 24), convolution(64, 128, 1, stride=2), 32),
    "resnext-group": (
        "a grouped bottleneck's, 128 3x3 in 16 groups",
        (128, 12, 12),
        convolution(128, 128, 3, padding=1, groups=16),
        32,
    ),
}


def build(make: Callable[[], nn.Module], num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """The layer alone; it has neither classes nor a choice of channels."""
    return make()


def data(shape: Shape, batch_size: int, generator: Generator) -> tuple[Tensor, None]:
    """Random normal images (N, C, H, W): zeros and constants would run faster than real data."""
    import torch

    return torch.randn((batch_size, *shape), generator=generator), None


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    for name, (summary, shape, make, batch_size) in LAYERS.items():
        yield Architecture(
            name=f"layers/{name}",
            summary=f"{summary}: a layer alone",
            build=partial(build, make),
            input_shape=shape,
            recipe=Recipe(batch_size=batch_size, init="default"),
            problem=Problem("random", partial(data, shape)),
        )
