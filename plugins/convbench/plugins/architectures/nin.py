"""`nin`: convolutions followed by 1x1 convolutions; the score of a class is the mean of its own channel.

Lin, Chen and Yan, "Network in network" (2013), as in Dive into Deep Learning, 8.3, without a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes), at least 67 pixels high and wide; the book's images have 224."""
    from torch import nn

    return nn.Sequential(
        _block(in_channels, 96, kernel_size=11, stride=4, padding=0),
        nn.MaxPool2d(kernel_size=3, stride=2),
        _block(96, 256, kernel_size=5, stride=1, padding=2),
        nn.MaxPool2d(kernel_size=3, stride=2),
        _block(256, 384, kernel_size=3, stride=1, padding=1),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Dropout(0.5),
        _block(384, num_classes, kernel_size=3, stride=1, padding=1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


def _block(in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> nn.Sequential:
    """A convolution of any size, then two 1x1 convolutions: a dense network at every pixel."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1),
        nn.ReLU(),
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="nin",
        summary="Network in Network: 1x1 convolutions after each larger one, no linear layer",
        build=build,
        input_shape=(1, 224, 224),
        recipe=Recipe(lr=0.05, epochs=10, batch_size=128, resize=(224, 224), init="xavier_uniform"),
        source="Dive into Deep Learning, 8.3",
    )
