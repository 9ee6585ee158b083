"""`vgg11` and `vgg11_narrow`: blocks of 3x3 convolutions, each halving the image, and three linear layers.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015),
configuration A; the narrow one, a quarter of the channels, is what Dive into Deep Learning, 8.2, trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn

# One (number of convolutions, output channels) per block.
WIDE = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
NARROW = ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128))


def build(
    num_classes: int = 10,
    in_channels: int = 1,
    arch: Sequence[tuple[int, int]] = WIDE,
    image_size: int = 224,
) -> nn.Module:
    """(N, in_channels, image_size, image_size) -> (N, num_classes).

    Args:
        arch: (number of convolutions, output channels) of every block.
        image_size: the side in pixels, halved by every block; the first linear layer is made for it.
    """
    from torch import nn

    blocks = []
    for convolutions, out_channels in arch:
        blocks.append(_block(in_channels, out_channels, convolutions))
        in_channels = out_channels
    side = image_size // 2 ** len(arch)
    if side < 1:
        raise ValueError(
            f"image_size must be at least {2 ** len(arch)} for {len(arch)} blocks, not {image_size}"
        )
    return nn.Sequential(
        *blocks,
        nn.Flatten(),
        nn.Linear(in_channels * side * side, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )


def _block(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H / 2, W / 2)."""
    from torch import nn

    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
        in_channels = out_channels
    return nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2))


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    recipe = Recipe(lr=0.01, epochs=10, batch_size=128, resize=(224, 224), init="xavier_uniform")
    yield Architecture(
        name="vgg11",
        summary="VGG-11: eight 3x3 convolutions of 64 to 512 channels, three linear layers",
        build=build,
        input_shape=(1, 224, 224),
        recipe=recipe,
        source="Dive into Deep Learning, 8.2",
    )
    yield Architecture(
        name="vgg11_narrow",
        summary="VGG-11 with a quarter of the channels, as the book trains it",
        build=partial(build, arch=NARROW),
        input_shape=(1, 224, 224),
        recipe=recipe,
        source="Dive into Deep Learning, 8.2",
    )
