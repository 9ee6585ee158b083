"""`lenet_bn`: LeNet-5 with batch normalisation before every activation.

Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate
shift" (2015), on the LeNet of Dive into Deep Learning, 8.5, which has no padding in its first convolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """(N, in_channels, 28, 28) -> (N, num_classes)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.BatchNorm2d(16),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 120),
        nn.BatchNorm1d(120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.BatchNorm1d(84),
        nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="lenet_bn",
        summary="LeNet-5 with batch norm before every sigmoid",
        build=build,
        input_shape=(1, 28, 28),
        recipe=Recipe(lr=0.1, epochs=10, batch_size=128, init="xavier_uniform"),
        source="Dive into Deep Learning, 8.5",
    )
