"""`googlenet`: nine Inception blocks, each four convolution paths side by side.

Szegedy et al., "Going deeper with convolutions" (2015), as in Dive into Deep Learning, 8.4: without the
auxiliary classifiers, and with true 5x5 convolutions where torchvision's has 3x3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes); the book's images are 96 pixels high and wide."""
    from torch import nn

    from convbench.plugins.architectures.blocks import Inception

    b1 = nn.Sequential(
        nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    b2 = nn.Sequential(
        nn.Conv2d(64, 64, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(64, 192, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    b3 = nn.Sequential(
        Inception(192, one=64, three=(96, 128), five=(16, 32), pool=32),
        Inception(256, one=128, three=(128, 192), five=(32, 96), pool=64),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    b4 = nn.Sequential(
        Inception(480, one=192, three=(96, 208), five=(16, 48), pool=64),
        Inception(512, one=160, three=(112, 224), five=(24, 64), pool=64),
        Inception(512, one=128, three=(128, 256), five=(24, 64), pool=64),
        Inception(512, one=112, three=(144, 288), five=(32, 64), pool=64),
        Inception(528, one=256, three=(160, 320), five=(32, 128), pool=128),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    b5 = nn.Sequential(
        Inception(832, one=256, three=(160, 320), five=(32, 128), pool=128),
        Inception(832, one=384, three=(192, 384), five=(48, 128), pool=128),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )
    return nn.Sequential(b1, b2, b3, b4, b5, nn.Linear(1024, num_classes))


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="googlenet",
        summary="nine Inception blocks of 1x1, 3x3, 5x5 and pooling branches",
        build=build,
        input_shape=(1, 96, 96),
        recipe=Recipe(lr=0.01, epochs=10, batch_size=128, resize=(96, 96), init="xavier_uniform"),
        source="Dive into Deep Learning, 8.4",
    )
