"""`mlp`: a dense network of LeNet's size, for the first question of the chapter: dense or convolutional?

One hidden layer of 77 units has 61,225 parameters on 28x28 images; LeNet has 61,706.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1, hidden: int = 77) -> nn.Module:
    """(N, in_channels, 28, 28) -> (N, num_classes)."""
    from torch import nn

    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * 28 * 28, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="mlp",
        summary="one hidden layer of 77 units: about as many parameters as LeNet, without convolution",
        build=build,
        input_shape=(1, 28, 28),
        recipe=Recipe(lr=0.1, epochs=10, batch_size=128, init="xavier_uniform"),
        source="Dive into Deep Learning, 5.2 and 7.1",
    )
