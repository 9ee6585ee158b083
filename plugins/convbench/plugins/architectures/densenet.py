"""`densenet`: four blocks in which every convolution takes the outputs of all convolutions before it.

Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks" (2017), as in Dive into
Deep Learning, 8.7: four 3x3 convolutions in each block, without bottlenecks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(
    num_classes: int = 10,
    in_channels: int = 1,
    growth_rate: int = 32,
    arch: Sequence[int] = (4, 4, 4, 4),
) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes); the book's images are 96 pixels high and wide.

    Args:
        growth_rate: channels that each convolution adds.
        arch: convolutions in each dense block; a transition halves channels and pixels between two of them.
    """
    from torch import nn

    from convbench.plugins.architectures.blocks import DenseBlock

    layers = OrderedDict[str, nn.Module](
        b1=nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    )
    channels = 64
    for number, convolutions in enumerate(arch, start=1):
        layers[f"dense{number}"] = DenseBlock(channels, convolutions, growth_rate)
        channels += convolutions * growth_rate
        if number < len(arch):
            layers[f"transition{number}"] = nn.Sequential(
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels // 2, kernel_size=1),
                nn.AvgPool2d(kernel_size=2, stride=2),
            )
            channels //= 2
    layers["last"] = nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )
    return nn.Sequential(layers)


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="densenet",
        summary="four dense blocks of four 3x3 convolutions, growing by 32 channels each",
        build=build,
        input_shape=(1, 96, 96),
        recipe=Recipe(lr=0.01, epochs=10, batch_size=128, resize=(96, 96), init="xavier_uniform"),
        source="Dive into Deep Learning, 8.7",
    )
