"""`lenet`: LeNet-5 as Dive into Deep Learning trains it on FashionMNIST.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998), with
sigmoid activations and average pooling, the output layer a plain linear one.
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
        nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="lenet",
        summary="LeNet-5: two sigmoid convolutions with average pooling, three linear layers",
        build=build,
        input_shape=(1, 28, 28),
        recipe=Recipe(lr=0.1, epochs=10, batch_size=128, init="xavier_uniform"),
        source="Dive into Deep Learning, 7.6",
    )
