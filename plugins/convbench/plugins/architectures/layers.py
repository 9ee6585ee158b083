"""`layers/<name>`: single layers with the shapes they have in networks, for the suites `ops` and `ladder`.

There is nothing to learn. A step is a forward pass, and a backward pass from a random gradient to input, weight
and bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from convbench.registry import Architecture, Problem, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Shape = tuple[int, int, int]
Layer = tuple[str, tuple[Any, ...], dict[str, Any]]  # the class in torch.nn, and its arguments


def layer(kind: str, *arguments: Any, **options: Any) -> Layer:
    return kind, arguments, options


# fmt: off
# name: what it is, the input of one image, the layer, images per step
LAYERS: dict[str, tuple[str, Shape, Layer, int]] = {
    "lenet-conv1": ("LeNet's first, 6 5x5", (1, 28, 28), layer("Conv2d", 1, 6, 5, padding=2), 128),
    "lenet-conv2": ("LeNet's second, 16 5x5", (6, 14, 14), layer("Conv2d", 6, 16, 5), 128),
    "lenet-pool1": ("LeNet's first pooling", (6, 28, 28), layer("AvgPool2d", 2, stride=2), 128),
    "first-3x3": (
        "narrow VGG's first at 28 pixels, 16 3x3", (1, 28, 28), layer("Conv2d", 1, 16, 3, padding=1), 128),
    "vgg-narrow": (
        "narrow VGG's at 128 pixels, 32 3x3", (16, 64, 64), layer("Conv2d", 16, 32, 3, padding=1), 32),
    "vgg-narrow-small": (
        "narrow VGG's at 64 pixels, 32 3x3", (16, 32, 32), layer("Conv2d", 16, 32, 3, padding=1), 32),
    "vgg-pool": ("narrow VGG's pooling at 128 pixels", (32, 64, 64), layer("MaxPool2d", 2, stride=2), 32),
    "resnet-stem": ("ResNet's first, 64 7x7", (1, 96, 96), layer("Conv2d", 1, 64, 7, stride=2, padding=3), 32),
    "resnet-pool": ("ResNet's pooling", (64, 48, 48), layer("MaxPool2d", 3, stride=2, padding=1), 32),
    "resnet-block": ("a residual block's, 64 3x3", (64, 24, 24), layer("Conv2d", 64, 64, 3, padding=1), 32),
    "resnet-shortcut": ("a shortcut's, 128 1x1", (64, 24, 24), layer("Conv2d", 64, 128, 1, stride=2), 32),
    "resnext-group": (
        "a grouped bottleneck's, 128 3x3 in 16 groups", (128, 12, 12),
        layer("Conv2d", 128, 128, 3, padding=1, groups=16), 32),
}
# fmt: on


def build(made: Layer, num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """The layer alone; it has no classes, and its channels are fixed."""
    from torch import nn

    kind, arguments, options = made
    module: nn.Module = getattr(nn, kind)(*arguments, **options)
    return module


def data(shape: Shape, batch_size: int, generator: Generator) -> tuple[Tensor, None]:
    """Random normal images (N, C, H, W): zeros and constants would run faster than real data."""
    import torch

    return torch.randn((batch_size, *shape), generator=generator), None


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    for name, (summary, shape, made, batch_size) in LAYERS.items():
        yield Architecture(
            name=f"layers/{name}",
            summary=f"{summary}: a layer alone",
            build=partial(build, made),
            input_shape=shape,
            recipe=Recipe(batch_size=batch_size, init="default"),
            problem=Problem("random", partial(data, shape)),
        )
