"""`alexnet`: the network that won ImageNet in 2012, without its split over two GPUs.

Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks" (2012), as
in Dive into Deep Learning, 8.1: wider than torchvision's, which follows the one-GPU variant of 2014.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """(N, in_channels, 224, 224) -> (N, num_classes)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, 96, kernel_size=11, stride=4, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(96, 256, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(256, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Flatten(),
        nn.Linear(256 * 5 * 5, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="alexnet",
        summary="five convolutions, the first of 11x11, and three linear layers of 4096",
        build=build,
        input_shape=(1, 224, 224),
        recipe=Recipe(lr=0.01, epochs=10, batch_size=128, resize=(224, 224), init="xavier_uniform"),
        source="Dive into Deep Learning, 8.1",
    )
