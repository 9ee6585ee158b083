"""`resnext`: residual bottlenecks whose 3x3 convolution is split into groups.

Xie, Girshick, Dollár, Tu and He, "Aggregated residual transformations for deep neural networks" (2017), with
the block of Dive into Deep Learning, 8.6.5, in the stem, the stages and the head of the book's ResNet-18.

`groups` is the number of groups, and `group_width` the channels of each. In the book's block the argument `groups`
is the width of a group, and the number is computed from it.
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
    groups: int = 16,
    group_width: int = 4,
    channels: int = 64,
    blocks: Sequence[int] = (2, 2, 2, 2),
) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes); the recipe's images are 96 pixels high and wide.

    `groups=32, group_width=4, channels=256, blocks=(3, 4, 6, 3)` is the paper's ResNeXt-50 (32x4d).

    Args:
        groups: groups of every 3x3 convolution, the same in all stages.
        group_width: channels of one group in the first stage, so that the bottleneck there has
            `groups * group_width` channels; as in the paper it doubles from stage to stage.
        channels: output channels of the first stage, doubled from stage to stage.
        blocks: bottlenecks in each stage.
    """
    from torch import nn

    from convbench.plugins.architectures.blocks import GroupedBottleneck

    layers = OrderedDict[str, nn.Module](
        b1=nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    )
    before = 64
    for stage, count in enumerate(blocks):
        width, out_channels = group_width * 2**stage, channels * 2**stage
        stage_blocks = [
            GroupedBottleneck(before, out_channels, groups, width, stride=1 if stage == 0 else 2),
            *(GroupedBottleneck(out_channels, out_channels, groups, width) for _ in range(count - 1)),
        ]
        layers[f"b{stage + 2}"] = nn.Sequential(*stage_blocks)
        before = out_channels
    layers["last"] = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(before, num_classes))
    return nn.Sequential(layers)


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    yield Architecture(
        name="resnext",
        summary="ResNeXt: eight residual bottlenecks with 3x3 convolutions in 16 groups",
        build=build,
        input_shape=(1, 96, 96),
        recipe=Recipe(lr=0.05, epochs=10, batch_size=128, resize=(96, 96), init="xavier_uniform"),
        source="Dive into Deep Learning, 8.6.5",
    )
