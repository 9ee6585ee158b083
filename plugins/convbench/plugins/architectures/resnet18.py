"""`resnet18`: eight residual blocks of two 3x3 convolutions each.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), as in Dive into Deep Learning,
8.6: its convolutions have biases and its shortcuts no batch norm, unlike torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes); the book's images are 96 pixels high and wide."""
    from torch import nn

    from convbench.plugins.architectures.blocks import Residual

    return nn.Sequential(
        OrderedDict[str, nn.Module](
            b1=nn.Sequential(
                nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            ),
            b2=nn.Sequential(Residual(64, 64), Residual(64, 64)),
            b3=nn.Sequential(Residual(64, 128, stride=2), Residual(128, 128)),
            b4=nn.Sequential(Residual(128, 256, stride=2), Residual(256, 256)),
            b5=nn.Sequential(Residual(256, 512, stride=2), Residual(512, 512)),
            last=nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(512, num_classes)),
        )
    )


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="resnet18",
        summary="ResNet-18: eight residual blocks of two 3x3 convolutions",
        build=build,
        input_shape=(1, 96, 96),
        recipe=Recipe(lr=0.01, epochs=10, batch_size=128, resize=(96, 96), init="xavier_uniform"),
        source="Dive into Deep Learning, 8.6",
    )
