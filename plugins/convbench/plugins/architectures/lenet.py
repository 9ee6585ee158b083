"""`lenet`: LeNet-5 as Dive into Deep Learning trains it on FashionMNIST; `lenet_relu`: the same with ReLU.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998), with sigmoid
activations, average pooling and a linear output layer. `lenet_relu` learns from the first epoch on, without the
plateau of the sigmoids. It has the layers of `local`, with shared weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1, activation: str = "Sigmoid") -> nn.Module:
    """(N, in_channels, 28, 28) -> (N, num_classes); `activation` is the name of a module of `torch.nn`."""
    from torch import nn

    activate: type[nn.Module] = getattr(nn, activation)
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
        activate(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5),
        activate(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        activate(),
        nn.Linear(120, 84),
        activate(),
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
    yield Architecture(
        name="lenet_relu",
        summary="LeNet-5 with ReLU: `local` with shared weights",
        build=partial(build, activation="ReLU"),
        input_shape=(1, 28, 28),
        recipe=Recipe(lr=0.1, epochs=10, batch_size=128, init="xavier_uniform"),
        source="Dive into Deep Learning, 7.6 with the activation of 8.1",
    )
