"""`layers/<name>` have the shapes at which the architectures use such layers."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from convbench.plugins.architectures.layers import LAYERS, build
from convbench.registry import create_model
from convbench.registry.conformance.cases import Case, model_cases

# the network a layer is of, and the pixels of its images: the recipe's, or smaller ones that a CPU can carry
NETWORKS = {
    "lenet-conv1": ("lenet", 28),
    "lenet-conv2": ("lenet", 28),
    "lenet-pool1": ("lenet", 28),
    "first-3x3": ("vgg11_narrow", 28),
    "vgg-narrow": ("vgg11_narrow", 128),
    "vgg-narrow-small": ("vgg11_narrow", 64),
    "vgg-pool": ("vgg11_narrow", 128),
    "resnet-stem": ("resnet18", 96),
    "resnet-pool": ("resnet18", 96),
    "resnet-block": ("resnet18", 96),
    "resnet-shortcut": ("resnet18", 96),
    "resnext-group": ("resnext", 96),
}


class AsFarAsItGoes(nn.Module):
    """A network on images that its last layers may be too large for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> None:
        with suppress(RuntimeError):
            self.network(images)


@cache
def calls(architecture: str, pixels: int) -> list[Case]:
    """The op calls of one forward pass of one image."""
    with torch.device("meta"):
        return model_cases(AsFarAsItGoes(create_model(architecture)), torch.zeros(1, 1, pixels, pixels))


@pytest.mark.parametrize("name", LAYERS)
def test_a_network_has_that_layer(name: str) -> None:
    _, shape, layer, _ = LAYERS[name]
    with torch.device("meta"):
        (alone,) = model_cases(build(layer), torch.zeros(1, *shape))
    assert alone in calls(*NETWORKS[name])
