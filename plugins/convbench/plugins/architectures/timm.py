"""`timm/<name>`: every classifier of timm, for any number of channels and classes, if timm is installed.

Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models, without the pretrained
weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from convbench.plugins.architectures.registered_names import registered_names
from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn

# `vit_base_patch16_384` is for 384 pixels, but `lcnet_100` is a width and `regnety_320` a number of FLOPs.
IMAGE_SIZE = re.compile(r"(?!regnet).*_((?:2[2-9]|[345]\d)\d|896)(?=_|$)")
ENCODER = "_enc"  # the end of the names of models without classes


def build(
    name: str, image_size: int, num_classes: int = 10, in_channels: int = 1, **options: Any
) -> nn.Module:
    """(N, in_channels, image_size, image_size) -> (N, num_classes): `timm.create_model(name, **options)`."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:  # position embeddings, made for one size
        options.setdefault("img_size", image_size)
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options
    )
    return model


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    for name in registered_names("timm"):
        if name.endswith(ENCODER):
            continue
        marked = IMAGE_SIZE.match(name)
        size = int(marked[1]) if marked else 224
        yield Architecture(
            name=f"timm/{name}",
            summary=f"timm's {name}, adapted in channels and classes",
            build=partial(build, name, size),
            input_shape=(1, size, size),
            recipe=Recipe(lr=0.01, epochs=10, batch_size=128, resize=(size, size), init="default"),
            source=f"timm.create_model({name!r})",
        )
