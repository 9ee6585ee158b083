"""`torchvision/<name>`: every classification model of torchvision, for any number of channels and classes.

https://docs.pytorch.org/vision/stable/models.html, without the pretrained weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from convbench.plugins.architectures.registered_names import registered_names
from convbench.registry import Architecture, Recipe, hookimpl

if TYPE_CHECKING:
    from torch import nn

IMAGE_SIZES = {"inception_v3": 299}  # pixels; all others were made for 224

# With auxiliary classifiers the training output would be a tuple; without `init_weights` there is a warning.
OPTIONS: dict[str, dict[str, object]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build(name: str, num_classes: int = 10, in_channels: int = 1, **options: Any) -> nn.Module:
    """(N, in_channels, H, W) -> (N, num_classes): `torchvision.models.<name>`, with its first convolution adapted.

    That convolution has torch's initial weights; everything else is torchvision's. `options` go to the model's
    constructor.
    """
    from torchvision.models import get_model

    arguments = {**OPTIONS.get(name, {}), **options}
    model: nn.Module = get_model(name, weights=None, num_classes=num_classes, **arguments)
    _take_channels(model, in_channels)
    return model


def _take_channels(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one for `in_channels` that is otherwise the same."""
    from torch import nn

    path, first = next((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    if first.in_channels == in_channels:
        return
    parent, _, child = path.rpartition(".")
    same = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    options: dict[str, Any] = {name: getattr(first, name) for name in same}
    adapted = nn.Conv2d(in_channels, bias=first.bias is not None, **options)
    setattr(model.get_submodule(parent), child, adapted)


@hookimpl
def convbench_architectures() -> Iterable[Architecture]:
    for name in registered_names("torchvision"):
        size = IMAGE_SIZES.get(name, 224)
        yield Architecture(
            name=f"torchvision/{name}",
            summary=f"torchvision's {name}, adapted in channels and classes",
            build=partial(build, name),
            input_shape=(1, size, size),
            recipe=Recipe(lr=0.01, epochs=10, batch_size=128, resize=(size, size), init="default"),
            source=f"torchvision.models.{name}",
        )
