"""The networks of the book: shapes, parameters, gradients, and blocks that equal torchvision's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import googlenet, resnet18, resnext50_32x4d, vgg11
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import cfgs, make_layers

from convbench.plugins.architectures.blocks import DenseBlock, GroupedBottleneck, Inception, Residual
from convbench.registry import Recipe, create_model, discover

REGISTRY = discover()
CLASSIFIERS = [
    name
    for name, record in REGISTRY.architectures.items()
    if record.problem is None
    and REGISTRY.architectures.plugin(name).distribution == "convbench"
    and "/" not in name
]
# Smaller images than the recipe's, where the network takes them; VGG's first linear layer has to be told.
IMAGE_SIZES = {
    "nin": 67,
    "googlenet": 32,
    "resnet18": 32,
    "resnext": 32,
    "densenet": 32,
    "vgg11": 32,
    "vgg11_narrow": 32,
}
OPTIONS = {"vgg11": {"image_size": 32}, "vgg11_narrow": {"image_size": 32}}


def small(name: str, *, channels: int = 1, batch: int = 2) -> tuple[nn.Module, torch.Tensor]:
    """A network and a batch it takes."""
    torch.manual_seed(0)
    model = create_model(name, in_channels=channels, registry=REGISTRY, **OPTIONS.get(name, {}))
    size = IMAGE_SIZES.get(name, REGISTRY.architecture(name).input_shape[1])
    return model, torch.rand(batch, channels, size, size)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name: str, **options: object) -> nn.Module:
    """Built without numbers: counts and shapes are all there."""
    with torch.device("meta"):
        return REGISTRY.architecture(name).build(**options)


def conv(before: int, after: int, kernel_size: int) -> int:
    return (before * kernel_size**2 + 1) * after


def linear(before: int, after: int) -> int:
    return (before + 1) * after


def test_every_network_of_the_book_is_there():
    family = {"mlp", "lenet", "lenet_bn", "alexnet", "vgg11", "vgg11_narrow", "nin", "googlenet"}
    assert family | {"resnet18", "resnext", "densenet"} <= set(CLASSIFIERS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_learns_in_every_parameter(name: str):
    model, images = small(name)
    scores = model(images)
    assert scores.shape == (2, 10)
    nn.functional.cross_entropy(scores, torch.tensor([3, 7])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    assert any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_evaluation_is_deterministic_and_per_image(name: str):
    model, images = small(name)
    model.eval()
    with torch.no_grad():
        scores = model(images)
        assert torch.equal(scores, model(images))
        torch.testing.assert_close(scores[1:], model(images[1:]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_any_number_of_channels_and_classes(name: str):
    record = REGISTRY.architecture(name)
    model = on_meta(name, num_classes=7, in_channels=3)
    scores = model(torch.empty(2, 3, *record.input_shape[1:], device="meta"))
    assert scores.shape == (2, 7)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_plain_layers_in_one_sequential(name: str):
    model = on_meta(name)
    assert isinstance(model, nn.Sequential)
    assert not [layer for layer in model.modules() if isinstance(layer, nn.modules.lazy.LazyModuleMixin)]


@pytest.mark.parametrize(
    ("name", "lr", "size"),
    [
        ("lenet_bn", 0.1, None),
        ("alexnet", 0.01, 224),
        ("vgg11", 0.01, 224),
        ("vgg11_narrow", 0.01, 224),
        ("nin", 0.05, 224),
        ("googlenet", 0.01, 96),
        ("resnet18", 0.01, 96),
        ("resnext", 0.05, 96),
        ("densenet", 0.01, 96),
    ],
)
def test_recipes_of_the_book(name: str, lr: float, size: int | None):
    record = REGISTRY.architecture(name)
    resize = None if size is None else (size, size)
    assert record.recipe == Recipe(lr=lr, epochs=10, batch_size=128, resize=resize, init="xavier_uniform")
    assert record.input_shape == (1, size or 28, size or 28)


# Parameters, against arithmetic from the book's descriptions.


def test_parameters_of_lenet():
    body = conv(1, 6, 5) + conv(6, 16, 5) + linear(120, 84) + linear(84, 10)
    assert parameters(on_meta("lenet")) == body + linear(16 * 5 * 5, 120) == 61_706
    norms = 2 * (6 + 16 + 120 + 84)
    assert parameters(on_meta("lenet_bn")) == body + linear(16 * 4 * 4, 120) + norms == 44_878


def test_parameters_of_alexnet():
    convolutions = [(1, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)]
    layers = linear(256 * 5 * 5, 4096) + linear(4096, 4096) + linear(4096, 10)
    assert parameters(on_meta("alexnet")) == sum(conv(*one) for one in convolutions) + layers == 46_764_746


def test_parameters_of_the_narrow_vgg():
    widths = [1, 16, 32, 64, 64, 128, 128, 128, 128]
    body = sum(conv(*pair, 3) for pair in pairwise(widths))
    layers = linear(128 * 7 * 7, 4096) + linear(4096, 4096) + linear(4096, 10)
    assert parameters(on_meta("vgg11_narrow")) == body + layers == 43_093_322


def test_parameters_of_nin():
    blocks = [(1, 96, 11), (96, 256, 5), (256, 384, 3), (384, 10, 3)]
    assert (
        parameters(on_meta("nin"))
        == sum(conv(*one) + 2 * conv(one[1], one[1], 1) for one in blocks)
        == 1_992_166
    )


def test_parameters_of_densenet():
    total, channels = conv(1, 64, 7) + 2 * 64, 64
    for block in range(4):
        for _ in range(4):
            total += 2 * channels + conv(channels, 32, 3)
            channels += 32
        if block < 3:
            total += 2 * channels + conv(channels, channels // 2, 1)
            channels //= 2
    assert parameters(on_meta("densenet")) == total + 2 * channels + linear(channels, 10) == 758_226


# Parameters, against torchvision's; one channel instead of three is two kernels fewer per filter.


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def norms(model: nn.Module) -> int:
    return sum(parameters(layer) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_vgg11_has_the_parameters_of_torchvisions():
    with torch.device("meta"):
        theirs = vgg11(num_classes=10)
    assert parameters(on_meta("vgg11")) == parameters(theirs) - 2 * 64 * 3 * 3 == 128_806_154


def test_resnet18_differs_from_torchvisions_as_the_books_does():
    """The book's convolutions have biases, its shortcuts have no batch norm."""
    with torch.device("meta"):
        theirs = resnet18(num_classes=10)
    biases = sum(layer.out_channels for layer in convolutions(theirs))
    shortcut_norms = 2 * (128 + 256 + 512)
    ours = parameters(on_meta("resnet18"))
    assert ours == parameters(theirs) - 2 * 64 * 7 * 7 + biases - shortcut_norms == 11_178_378


def test_resnext_is_torchvisions_resnext50_when_asked_for_its_size():
    with torch.device("meta"):
        theirs = resnext50_32x4d(num_classes=10)
    ours = on_meta("resnext", groups=32, group_width=4, channels=256, blocks=(3, 4, 6, 3))
    biases = sum(layer.out_channels for layer in convolutions(theirs))
    assert parameters(ours) == parameters(theirs) - 2 * 64 * 7 * 7 + biases
    assert [layer.groups for layer in convolutions(ours)].count(32) == 16
    assert parameters(on_meta("resnext")) == 1_812_746


def test_googlenet_differs_from_torchvisions_as_the_books_does():
    """Biases instead of batch norm, and 5x5 convolutions in the third branch instead of 3x3."""
    with torch.device("meta"):
        theirs = googlenet(num_classes=10, aux_logits=False, init_weights=False)
    biases = sum(layer.out_channels for layer in convolutions(theirs))
    third = [
        layer.weight.numel() for name, layer in theirs.named_modules() if name.endswith("branch3.1.conv")
    ]
    assert len(third) == 9
    larger = sum(numbers // 9 * (25 - 9) for numbers in third)
    ours = parameters(on_meta("googlenet"))
    assert ours == parameters(theirs) - 2 * 64 * 7 * 7 - norms(theirs) + biases + larger == 5_977_530


# Blocks, against torchvision's with the same weights.


def take_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy convolutions and norms in order; a bias that theirs has not is zero."""
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    for kind in kinds:
        mine = [layer for layer in ours.modules() if isinstance(layer, kind)]
        other = [layer for layer in theirs.modules() if isinstance(layer, kind)]
        for layer, source in zip(mine, other, strict=True):
            layer.weight.data = source.weight.data.clone()
            layer.bias.data = (
                torch.zeros_like(layer.bias) if source.bias is None else source.bias.data.clone()
            )


def test_vgg_blocks_compute_what_torchvisions_do():
    ours, images = small("vgg11", channels=3)
    theirs = make_layers(cfgs["A"])
    take_weights(ours[:5], theirs)
    torch.testing.assert_close(ours[:5](images), theirs(images))


def test_a_residual_block_computes_what_torchvisions_does():
    ours, theirs = Residual(8, 8), BasicBlock(8, 8)
    take_weights(ours, theirs)
    images = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(ours(images), theirs(images))


def test_the_books_shapes_of_a_residual_block():
    images = torch.randn(4, 3, 6, 6)
    assert Residual(3, 3)(images).shape == (4, 3, 6, 6)
    assert Residual(3, 6, stride=2)(images).shape == (4, 6, 3, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_grouped_bottleneck_computes_what_torchvisions_does(stride: int):
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, stride, bias=False), nn.BatchNorm2d(32))
    theirs = Bottleneck(
        16, 8, stride, downsample=shortcut, groups=4, base_width=16
    )  # 8 * 16/64 * 4 = 8 channels
    ours = GroupedBottleneck(16, 32, groups=4, group_width=2, stride=stride)
    take_weights(ours, theirs)
    images = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(ours(images), theirs(images))


def test_inception_puts_its_branches_side_by_side():
    block = Inception(4, one=2, three=(3, 5), five=(1, 6), pool=7)
    images = torch.randn(2, 4, 8, 8)
    output = block(images)
    assert output.shape == (2, 2 + 5 + 6 + 7, 8, 8)
    torch.testing.assert_close(output[:, :2], block.one[0](images).relu())
    pooled = nn.functional.max_pool2d(images, 3, 1, 1)
    torch.testing.assert_close(output[:, -7:], block.pool[1](pooled).relu())


def test_a_dense_block_keeps_its_input_and_adds_to_it():
    block = DenseBlock(3, layers=2, growth_rate=10)
    images = torch.randn(4, 3, 8, 8)
    output = block(images)
    assert output.shape == (4, 23, 8, 8)  # the book's example
    assert torch.equal(output[:, :3], images)
    torch.testing.assert_close(output[:, 13:], block.layers[1](output[:, :13]))


# ResNeXt's two options.


@pytest.mark.parametrize(("groups", "group_width"), [(16, 4), (4, 16), (1, 8), (8, 1)])
def test_groups_is_a_number_and_group_width_a_width(groups: int, group_width: int):
    """An output channel sees the `group_width` channels of its own of `groups` groups, and no others."""
    block = GroupedBottleneck(6, 12, groups, group_width)
    grouped = block.conv2
    assert grouped.groups == groups
    assert grouped.weight.shape == (groups * group_width, group_width, 3, 3)
    features = torch.zeros(1, groups * group_width, 5, 5, requires_grad=True)
    grouped(features)[0, 0].sum().backward()
    seen = features.grad[0].abs().sum((1, 2)) > 0
    assert seen.tolist() == [channel < group_width for channel in range(groups * group_width)]


def test_group_width_doubles_with_the_channels_of_a_stage():
    model = on_meta("resnext", groups=8, group_width=4)
    widths = [stage[0].conv2.weight.shape[:2] for stage in (model.b2, model.b3, model.b4, model.b5)]
    assert widths == [(32, 4), (64, 8), (128, 16), (256, 32)]


@pytest.mark.parametrize("options", [{"groups": 0}, {"group_width": 0}])
def test_groups_of_nothing_are_refused(options: dict[str, int]):
    with pytest.raises(ValueError, match="groups and group_width must be at least 1"):
        on_meta("resnext", **options)


def test_vgg_refuses_images_that_its_blocks_halve_to_nothing():
    with pytest.raises(ValueError, match="image_size must be at least 32 for 5 blocks, not 31"):
        on_meta("vgg11", image_size=31)
