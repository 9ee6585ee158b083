"""`edge_detector`: one convolution with a 1x2 kernel that learns to find vertical edges in a 6x8 image.

The chapter's first training: ten steps of gradient descent on the squared error, learning rate 0.03, and the
kernel approaches [1, -1].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Problem, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def build(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """(N, 1, 6, 8) -> (N, 1, 6, 7): there are no classes; `num_classes` is not used."""
    from torch import nn

    return nn.Conv2d(in_channels, 1, kernel_size=(1, 2), bias=False)


def data(batch_size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The image (N, 1, 6, 8) and its edges (N, 1, 6, 7), the same for every image of the batch."""
    from convbench.plugins.d2l.edges import edge_image

    image = edge_image().expand(batch_size, 1, 6, 8)
    return image, image[..., :-1] - image[..., 1:]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error, summed over the output."""
    return (outputs - targets).square().sum()


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="edge_detector",
        summary="one 1x2 kernel, learned from the edges of a 6x8 image",
        build=build,
        input_shape=(1, 6, 8),
        recipe=Recipe(lr=3e-2, epochs=10, batch_size=1, init="default"),
        source="Dive into Deep Learning, 7.2.4",
        problem=Problem("edge-image", data, loss),
    )
