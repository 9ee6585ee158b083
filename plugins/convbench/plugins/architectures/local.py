"""`local`: LeNet without weight sharing, for the chapter's second question: does translation invariance matter?

It has the layers of `lenet_relu`, but a separate kernel at every output position. Windows and output shapes are
the same. It has 423,038 parameters instead of 61,706, nearly all of them in the two local layers. With sigmoids
it does not learn in ten epochs: the gradient of a kernel comes from one position, and is far smaller than that
of a shared kernel.
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

    from convbench.plugins.d2l.layers import LocallyConnected2d

    return nn.Sequential(
        LocallyConnected2d(in_channels, 6, input_size=28, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        LocallyConnected2d(6, 16, input_size=14, kernel_size=5),
        nn.ReLU(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="local",
        summary="LeNet with locally connected layers: a convolution's windows without shared weights",
        build=build,
        input_shape=(1, 28, 28),
        recipe=Recipe(lr=0.1, epochs=10, batch_size=128, init="xavier_uniform"),
        source="Dive into Deep Learning, 7.1",
    )
