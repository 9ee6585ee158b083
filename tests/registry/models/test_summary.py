"""`summarise` and `convbench summary`: the chapter's tables, counts, and errors that name the layer."""

from __future__ import annotations

import io
import json
import sys

import click
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convbench.registry import Architecture, UnknownName, UsageError, discover
from convbench.registry.cli.summary import convbench_commands
from convbench.registry.models.summary import summarise

REGISTRY = discover()

# As printed in the chapter, sections 7.6, 8.2 and 8.6.
CHAPTER = {
    "lenet": """
Conv2d output shape:	 torch.Size([1, 6, 28, 28])
Sigmoid output shape:	 torch.Size([1, 6, 28, 28])
AvgPool2d output shape:	 torch.Size([1, 6, 14, 14])
Conv2d output shape:	 torch.Size([1, 16, 10, 10])
Sigmoid output shape:	 torch.Size([1, 16, 10, 10])
AvgPool2d output shape:	 torch.Size([1, 16, 5, 5])
Flatten output shape:	 torch.Size([1, 400])
Linear output shape:	 torch.Size([1, 120])
Sigmoid output shape:	 torch.Size([1, 120])
Linear output shape:	 torch.Size([1, 84])
Sigmoid output shape:	 torch.Size([1, 84])
Linear output shape:	 torch.Size([1, 10])
""",
    "vgg11": """
Sequential output shape:	 torch.Size([1, 64, 112, 112])
Sequential output shape:	 torch.Size([1, 128, 56, 56])
Sequential output shape:	 torch.Size([1, 256, 28, 28])
Sequential output shape:	 torch.Size([1, 512, 14, 14])
Sequential output shape:	 torch.Size([1, 512, 7, 7])
Flatten output shape:	 torch.Size([1, 25088])
Linear output shape:	 torch.Size([1, 4096])
ReLU output shape:	 torch.Size([1, 4096])
Dropout output shape:	 torch.Size([1, 4096])
Linear output shape:	 torch.Size([1, 4096])
ReLU output shape:	 torch.Size([1, 4096])
Dropout output shape:	 torch.Size([1, 4096])
Linear output shape:	 torch.Size([1, 10])
""",
    "resnet18": """
Sequential output shape:	 torch.Size([1, 64, 24, 24])
Sequential output shape:	 torch.Size([1, 64, 24, 24])
Sequential output shape:	 torch.Size([1, 128, 12, 12])
Sequential output shape:	 torch.Size([1, 256, 6, 6])
Sequential output shape:	 torch.Size([1, 512, 3, 3])
Sequential output shape:	 torch.Size([1, 10])
""",
}
FIELDS = {
    "lenet": [5, 5, 6, 14, 14, 16, 16, "all", "all", "all", "all", "all"],
    "vgg11": [4, 10, 30, 70, 150, 150] + 7 * ["all"],
    "resnet18": [11, 43, 99, 211, 435, "all"],
}


def convbench(*arguments: str) -> Result:
    """Run the command alone."""
    group = click.Group()
    convbench_commands(group)
    return CliRunner().invoke(group, ["summary", *arguments], obj=REGISTRY)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return REGISTRY.architecture(name).build()


@pytest.mark.parametrize("name", CHAPTER)
def test_the_chapters_tables(name: str):
    summary = summarise(on_meta(name), (1, *REGISTRY.architecture(name).input_shape))
    assert str(summary) == CHAPTER[name].strip()
    sides = [
        seen if isinstance(seen, str) else seen[0] for seen in (row.receptive_field for row in summary.rows)
    ]
    assert sides == FIELDS[name]


@pytest.mark.parametrize("name", ["lenet", "vgg11", "nin", "googlenet", "resnet18", "resnext", "densenet"])
def test_flops_are_torchs(name: str):
    model, shape = on_meta(name).eval(), (2, *REGISTRY.architecture(name).input_shape)
    summary = summarise(model, shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(shape, device="meta"))
    assert summary.flops == counter.get_total_flops() == sum(row.flops for row in summary.rows)
    assert summary.parameters == sum(row.parameters for row in summary.rows)


def test_flops_by_hand():
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(6 * 3 * 2, 5))
    convolution, _, linear = summarise(layers, (3, 4, 7, 5)).rows
    assert convolution.flops == 2 * 3 * (6 * 3 * 2) * (4 // 2 * 3 * 3)
    assert linear.flops == 2 * 3 * 36 * 5


def test_what_is_counted_on_meta_is_what_is_computed():
    model = REGISTRY.architecture("resnet18").build()
    assert summarise(model, (1, 1, 64, 64)) == summarise(on_meta("resnet18"), (1, 1, 64, 64))


def test_depth_shows_layers_in_layers():
    rows = summarise(on_meta("resnet18"), (1, 1, 96, 96), depth=3).rows
    names = [row.name for row in rows]
    assert names[:6] == ["b1", "b1.0", "b1.1", "b1.2", "b1.3", "b2"]
    assert [row.depth for row in rows if row.name in ("b3", "b3.0", "b3.0.conv3")] == [1, 2, 3]
    assert (
        sum(row.parameters for row in rows if row.depth == 1)
        == summarise(on_meta("resnet18"), (1, 1, 96, 96)).parameters
    )


def test_a_shared_layer_is_counted_once():
    shared = nn.Conv2d(1, 1, 3, padding=1)
    summary = summarise(nn.Sequential(shared, nn.ReLU(), shared), (1, 1, 8, 8))
    assert summary.parameters == 10
    assert [row.parameters for row in summary.rows] == [10, 0, 0]
    assert [row.receptive_field for row in summary.rows] == [(3, 3), (3, 3), (5, 5)]
    assert summary.rows[0].flops == summary.rows[2].flops == summary.flops // 2


def test_a_layer_alone_is_its_own_row():
    (row,) = summarise(nn.Conv2d(1, 2, 3), (1, 1, 8, 8)).rows
    assert (row.name, row.layer, row.output_shape, row.parameters) == ("", "Conv2d", (1, 2, 6, 6), 20)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    summarise(model, (1, 1, 8, 8))
    with pytest.raises(UsageError):
        summarise(model, (1, 1, 2, 2))
    assert [layer.training for layer in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_refused_input_names_the_layer_and_its_shape():
    with pytest.raises(UsageError, match=r"layer Linear at '7' cannot take an input of \[1, 64\]: .*"):
        summarise(REGISTRY.architecture("lenet").build(), (1, 1, 16, 16))
    with pytest.raises(
        UsageError, match=r"layer Conv2d at 'b1.0' cannot take an input of \[1, 3, 96, 96\]: "
    ):
        summarise(on_meta("resnet18"), (1, 3, 96, 96))


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 1, 0, 28)])
def test_an_input_is_four_positive_numbers(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match="four positive numbers N, C, H, W, not"):
        summarise(nn.Identity(), shape)


def test_the_command_prints_an_aligned_table():
    result = convbench("mlp")
    assert result.exception is None
    assert result.output == (
        "name  layer    output shape  parameters    FLOPs  receptive field\n"
        f"{'─' * 65}\n"
        "0     Flatten  [1, 784]               0        0              1x1\n"
        "1     Linear   [1, 77]           60,445  120,736              all\n"
        "2     ReLU     [1, 77]                0        0              all\n"
        "3     Linear   [1, 10]              780    1,540              all\n"
        "input [1, 1, 28, 28]: 61,225 parameters, 122,276 FLOPs\n"
    )


@pytest.mark.parametrize("width", [80, 60, 20])
def test_the_command_cuts_nothing_off_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    group = click.Group()
    convbench_commands(group)
    group.main(["summary", "vgg11"], standalone_mode=False, obj=REGISTRY)
    printed = sys.stdout.getvalue()
    assert "\x1b" not in printed  # neither colour nor bold
    if width > 20:
        assert max(map(len, printed.splitlines())) <= width
    shown = ("Sequential", "[1, 64, 112, 112]", "102,764,544", *["150x150"] * (width != 60))
    for cell in (*shown, "128,806,154 parameters"):
        assert cell in " ".join(printed.split())


@pytest.mark.parametrize("name", CHAPTER)
def test_the_command_prints_as_the_book_does(name: str):
    assert convbench(name, "--book").output.strip() == CHAPTER[name].strip()


def test_the_command_prints_json():
    read = json.loads(convbench("lenet", "--json", "--input", "2,1,28,28").output)
    assert (read["architecture"], read["input_shape"]) == ("lenet", [2, 1, 28, 28])
    assert (read["parameters"], read["flops"]) == (61_706, 2 * 833_040)
    first = {
        "name": "0",
        "layer": "Conv2d",
        "output_shape": [2, 6, 28, 28],
        "parameters": 156,
        "flops": 470_400,
    }
    assert read["rows"][0] == {**first, "receptive_field": [5, 5], "jump": [1, 1], "depth": 1}


def test_the_channels_of_the_input_are_the_networks():
    output = convbench("lenet", "--input", "1,3,28,28").output
    assert "[1, 6, 28, 28]" in output
    assert "62,006 parameters" in output  # 2 * 25 * 6 more


def test_options_reach_the_network():
    output = convbench("resnext", "--option", "groups=8", "--option", "group_width=2", "--depth", "3").output
    assert "b2.0.conv2" in output
    assert "[1, 16, 24, 24]" in output


def test_a_network_that_has_to_be_built_from_numbers():
    """The meta device has none; torchvision's RegNets compute their widths with tensors."""

    def build(num_classes: int, in_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, int(torch.ones(3).sum()), 1)

    catalog = {"counted": Architecture("counted", "", build)}

    class Registry:
        architecture = staticmethod(catalog.get)

    group = click.Group()
    convbench_commands(group)
    result = CliRunner().invoke(group, ["summary", "counted"], obj=Registry())
    assert "[1, 3, 28, 28]" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["lenet", "--input", "1,28,28"],
            "--input '1,28,28' is not four positive numbers N,C,H,W such as 1,1,28,28",
        ),
        (
            ["lenet", "--input", "1,1,28,x"],
            "--input '1,1,28,x' is not four positive numbers N,C,H,W such as 1,1,28,28",
        ),
        (
            ["lenet", "--input", "0,1,28,28"],
            "--input '0,1,28,28' is not four positive numbers N,C,H,W such as 1,1,28,28",
        ),
        (
            ["lenet", "--input", "1,1,16,16"],
            "layer Linear at '7' cannot take an input of [1, 64]: "
            "mat1 and mat2 shapes cannot be multiplied (1x64 and 400x120)",
        ),
        (["lenet", "--option", "groups"], "--option 'groups' is not KEY=VALUE, such as num_classes=100"),
        (
            ["resnext", "--option", "group=4"],
            "architecture 'resnext' has no option 'group'; did you mean 'groups'? "
            "available: blocks, channels, group_width, groups, in_channels, num_classes",
        ),
        (
            ["resnext", "--option", "groups=0"],
            "architecture 'resnext' cannot be built with in_channels=1, groups=0: "
            "groups and group_width must be at least 1, not 0 and 4",
        ),
        (
            ["torchvision/resnet18", "--option", "colour=blue"],
            "architecture 'torchvision/resnet18' cannot be built with in_channels=1, colour='blue': "
            "ResNet.__init__() got an unexpected keyword argument 'colour'",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(arguments: list[str], message: str):
    error = convbench(*arguments).exception
    assert isinstance(error, UsageError)
    assert str(error).replace("addmm: ", "") == message  # some versions of torch name the op


def test_an_unknown_architecture():
    error = convbench("lenett").exception
    assert isinstance(error, UnknownName)
    assert "did you mean 'lenet'?" in str(error)
