"""`torchvision/<name>`: all of torchvision's classification models, adapted, and listed without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from conftest import exhaustive
from convbench.plugins.architectures.torchvision import build
from convbench.registry import discover, list_models
from convbench.registry.models.summary import summarise

REGISTRY = discover()
PREFIX = "torchvision/"
# One of each kind; RegNets cannot be built on the meta device.
# fmt: off
FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
]
# fmt: on


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def test_every_classification_model_is_registered():
    models = torchvision.models.list_models(module=torchvision.models)
    assert list_models("torchvision/*", REGISTRY) == [PREFIX + name for name in models]


def test_listing_imports_neither_torchvision_nor_torch():
    code = (
        "import sys; from convbench.registry import discover; names = list(discover().architectures); "
        "assert 'torchvision/resnet18' in names; assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [exhaustive(name) if at % 2 else name for at, name in enumerate(FAMILIES)])
def test_adapted_to_one_channel_and_ten_classes(name: str):
    record = REGISTRY.architecture(PREFIX + name)
    with torch.device("meta"):
        model = record.build()
    summary = summarise(model, (1, *record.input_shape))
    images = torch.empty(2, *record.input_shape, device="meta")
    scores = model.train()(images)
    assert isinstance(scores, torch.Tensor)  # no auxiliary outputs in training
    assert scores.shape == (2, 10)
    assert (
        record.input_shape[1:] == record.recipe.resize == (299, 299) if name == "inception_v3" else (224, 224)
    )
    assert summary.rows[-1].receptive_field == "all"


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121", "vit_b_32", "squeezenet1_1"])
def test_only_the_first_convolution_changes(name: str):
    with torch.device("meta"):
        ours = build(name, in_channels=1, num_classes=10)
        theirs = torchvision.models.get_model(name, num_classes=10)
    first, original = convolutions(ours)[0], convolutions(theirs)[0]
    assert (first.in_channels, original.in_channels) == (1, 3)
    for attribute in (
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(first, attribute) == getattr(original, attribute)
    assert (first.bias is None) == (original.bias is None)
    rest = {path: parameter.shape for path, parameter in ours.named_parameters()}
    expected = {path: parameter.shape for path, parameter in theirs.named_parameters()}
    changed = {path for path in expected if rest[path] != expected[path]}
    assert rest.keys() == expected.keys()
    assert [rest[path][1] for path in changed] == [1]


def test_nothing_changes_for_three_channels_and_a_thousand_classes():
    """Torchvision's published number of parameters."""
    with torch.device("meta"):
        model = build("resnet18", in_channels=3, num_classes=1000)
    published = torchvision.models.ResNet18_Weights.DEFAULT.meta["num_params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == published == 11_689_512


def test_regnets_are_built_from_numbers():
    model = build("regnet_x_400mf")
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_it_learns():
    model = build("resnet18")
    nn.functional.cross_entropy(model(torch.rand(2, 1, 32, 32)), torch.tensor([1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_options_go_to_the_constructor():
    with torch.device("meta"):
        model = build("resnet18", groups=1, width_per_group=64, zero_init_residual=True)
    assert isinstance(model, torchvision.models.ResNet)
    with pytest.raises(TypeError, match="colour"):
        build("resnet18", colour="blue")
