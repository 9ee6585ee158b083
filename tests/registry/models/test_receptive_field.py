"""Receptive fields: rule by rule on tiny networks, against gradients, and against published ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from convbench.registry.models.summary import Row, summarise


class Lambda(nn.Module):
    """A function with layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images, *self.layers)


def seen_by(*layers: nn.Module, shape: tuple[int, ...] = (1, 4, 16, 16)) -> Row:
    """The last row of these layers in sequence."""
    return summarise(nn.Sequential(*layers), shape).rows[-1]


def conv(kernel_size: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel_size, **options)


# Windows.


def test_a_convolution_grows_the_field_by_its_kernel():
    row = seen_by(conv(3), conv(5))
    assert (row.receptive_field, row.jump) == ((7, 7), (1, 1))


def test_a_stride_spreads_what_follows():
    row = seen_by(conv(3, stride=2), conv(3), conv(3, stride=3))
    assert (row.receptive_field, row.jump) == ((3 + 2 * 2 + 2 * 2,) * 2, (6, 6))


def test_a_dilation_spreads_the_kernel():
    assert seen_by(conv(3, dilation=3)).receptive_field == (7, 7)


def test_height_and_width_apart():
    row = seen_by(nn.Conv2d(4, 4, (1, 5), stride=(1, 2)), nn.MaxPool2d((3, 2), stride=(2, 1)))
    assert (row.receptive_field, row.jump) == ((3, 7), (2, 2))


def test_pooling_strides_by_its_window():
    row = seen_by(nn.MaxPool2d(2), nn.AvgPool2d(3), shape=(1, 4, 18, 18))
    assert (row.receptive_field, row.jump) == ((6, 6), (6, 6))


def test_pooling_with_indices():
    row = seen_by(Lambda(lambda images: F.max_pool2d(images, 2, return_indices=True)[0]), conv(3))
    assert row.receptive_field == (6, 6)


def test_adaptive_pooling_is_a_window_where_it_divides():
    row = seen_by(conv(3, padding=1), nn.AdaptiveAvgPool2d(4))
    assert (row.receptive_field, row.jump) == ((6, 6), (4, 4))
    assert seen_by(nn.AdaptiveAvgPool2d(5)).receptive_field == "unknown"
    assert seen_by(nn.AdaptiveMaxPool2d(1)).receptive_field == "all"


def test_functional_calls_count_as_modules_do():
    weight = torch.ones(2, 4, 3, 3)
    row = seen_by(Lambda(lambda images: F.max_pool2d(F.relu(F.conv2d(images, weight, padding=1)), 2)))
    assert (row.receptive_field, row.jump) == ((4, 4), (2, 2))


def test_a_named_padding():
    assert seen_by(nn.Conv2d(4, 4, 5, padding="same")).receptive_field == (5, 5)


def test_unfolding_is_the_window_of_a_convolution():
    weight = torch.ones(64, 4 * 9, 6)

    def unfolded(images: Tensor) -> Tensor:
        patches = F.unfold(images, 3, padding=1, stride=2)  # (N, 36, 64), a kernel at each of 64 places
        return torch.einsum("nkp,pko->nop", patches, weight).view(-1, 6, 8, 8)

    row = seen_by(Lambda(unfolded), nn.Conv2d(6, 1, 3))
    assert (row.receptive_field, row.jump) == ((3 + 2 * 2,) * 2, (2, 2))


# Branches.


def test_a_residual_sum_sees_what_its_widest_branch_sees():
    block = Lambda(lambda images, wide, narrow: narrow(images) + wide(images), conv(5, padding=2), conv(1))
    assert seen_by(block, conv(3)).receptive_field == (7, 7)


def test_a_sum_in_place():
    def block(images: Tensor, wide: nn.Module) -> Tensor:
        features = images.clone()
        features += wide(images)
        return features.relu_()

    assert seen_by(Lambda(block, conv(5, padding=2))).receptive_field == (5, 5)


def test_a_concatenation_sees_what_its_widest_branch_sees():
    block = Lambda(
        lambda images, wide, narrow: torch.cat(
            (narrow(images), wide(images), F.max_pool2d(images, 3, 1, 1)), 1
        ),
        conv(7, padding=3),
        conv(1),
    )
    assert seen_by(block).receptive_field == (7, 7)


def test_a_part_that_is_assigned():
    def block(images: Tensor, wide: nn.Module) -> Tensor:
        features = images.clone()
        features[:, :2] = wide(images)[:, :2]
        return features

    assert seen_by(Lambda(block, conv(5, padding=2)), conv(3)).receptive_field == (7, 7)


def test_a_gate_computed_from_the_whole_image():
    gate = Lambda(lambda images: images * F.adaptive_avg_pool2d(images, 1).sigmoid())
    assert seen_by(conv(3), gate).receptive_field == "all"


# Movement and mixing.


def test_flattening_changes_what_no_unit_sees_a_linear_layer_does():
    assert seen_by(conv(3), nn.Flatten()).receptive_field == (3, 3)
    assert seen_by(conv(3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).receptive_field == "all"


def test_a_linear_layer_over_the_channels_of_a_pixel():
    over_channels = Lambda(
        lambda images, norm, linear: linear(norm(images.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        nn.LayerNorm(4),
        nn.Linear(4, 8),
    )
    row = seen_by(conv(3), over_channels, nn.Conv2d(8, 1, 3))
    assert (row.receptive_field, row.jump) == ((5, 5), (1, 1))


def test_shuffled_channels_stay_where_they_are():
    def shuffle(images: Tensor) -> Tensor:
        return images.view(-1, 2, 2, 16, 16).transpose(1, 2).reshape(-1, 4, 16, 16)

    assert seen_by(Lambda(shuffle), conv(3)).receptive_field == (3, 3)
    assert seen_by(nn.ChannelShuffle(2), conv(3)).receptive_field == (3, 3)


@pytest.mark.parametrize(
    ("mixture", "seen"),
    [
        (lambda images: images.mean((2, 3)), "all"),
        (lambda images: images.mean(1, keepdim=True), (1, 1)),
        (lambda images: images.sum(-1), "unknown"),  # one row of the image
        (lambda images: images.softmax(1), (1, 1)),
        (lambda images: images.flatten(2).softmax(-1), "all"),
        (lambda images: F.normalize(images), (1, 1)),
        (lambda images: F.group_norm(images, 2), "all"),
        (lambda images: F.layer_norm(images, images.shape[1:]), "all"),
        (lambda images: F.batch_norm(images, None, None, training=True), "all"),
        (lambda images: images.amax((2, 3), keepdim=True) + images, "all"),
        (lambda images: torch.maximum(images, images), (1, 1)),
        (lambda images: images @ torch.ones(16, 16), "unknown"),
        (lambda images: images.flatten(2) @ torch.ones(256, 256), "all"),
        (lambda images: images @ images, "unknown"),
        (lambda images: images[..., ::2], "unknown"),
        (lambda images: images[..., 2:9], (1, 1)),
        (lambda images: images.roll(1, 3), (1, 1)),
        (lambda images: F.interpolate(images, scale_factor=2.0), "unknown"),
        (lambda images: F.pixel_shuffle(images, 2), "unknown"),
        (lambda images: torch.fft.fft2(images).real, "unknown"),
        (lambda images: images.cumsum(3), "unknown"),
        (lambda images: F.pad(images, (1, 2, 3, 4)), (1, 1)),
        (lambda images: torch.zeros_like(images), "unknown"),  # not of the image at all
    ],
)
def test_what_is_mixed(mixture: Callable[[Tensor], Tensor], seen: object):
    assert seen_by(Lambda(mixture)).receptive_field == seen


def attention(tokens: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_attention_sees_all_tokens_it_is_given():
    def everywhere(images: Tensor) -> Tensor:
        return attention(images.flatten(2).transpose(1, 2))

    def in_windows(images: Tensor) -> Tensor:
        windows = images.view(-1, 4, 2, 8, 2, 8).permute(0, 2, 4, 3, 5, 1)
        return attention(windows.reshape(-1, 64, 4))

    assert seen_by(Lambda(everywhere)).receptive_field == "all"
    assert seen_by(Lambda(in_windows)).receptive_field == "unknown"
    multihead = nn.MultiheadAttention(4, 2, batch_first=True)
    tokens = Lambda(lambda images, layer: layer(*[images.flatten(2).transpose(1, 2)] * 3)[0], multihead)
    assert seen_by(tokens).receptive_field == "all"


# Against gradients: which pixels the middle unit depends on.


@pytest.mark.parametrize(
    "layers",
    [
        [conv(3), conv(5, stride=2), conv(3, dilation=2)],
        [conv(3, stride=2, padding=1), nn.AvgPool2d(3, 2, 1), conv(3, padding=1), conv(1)],
        [nn.Conv2d(4, 4, (3, 5), stride=(1, 2)), nn.AvgPool2d(2), nn.Conv2d(4, 4, (5, 2))],
        [
            conv(7, stride=3),
            Lambda(lambda images, inner: images + inner(images), conv(5, padding=2)),
            conv(3),
        ],
    ],
)
def test_as_large_as_the_pixels_that_gradients_reach(layers: list[nn.Module]):
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter)  # nothing cancels
    images = torch.ones(1, 4, 65, 65, dtype=torch.float64, requires_grad=True)
    output = model(images)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    reached = images.grad[0, 0] > 0
    rows, columns = reached.any(1).nonzero(), reached.any(0).nonzero()
    extent = (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)
    assert summarise(model, (1, 4, 65, 65)).rows[-1].receptive_field == extent


# Against Araujo, Norris and Sim (2019), https://distill.pub/2019/computing-receptive-fields: the whole of the
# convolutions. torchvision's strides are those of the networks in the article.


@pytest.mark.parametrize(
    ("name", "pixels", "published"),
    [("alexnet", 224, 195), ("vgg16", 224, 212), ("inception_v3", 299, 1311)],
)
def test_published_fields(name: str, pixels: int, published: int):
    options = {"init_weights": False, "aux_logits": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        model = get_model(name, **options)
    rows = summarise(model, (1, 3, pixels, pixels), depth=3).rows
    assert max(row.receptive_field for row in rows if row.receptive_field != "all") == (published, published)
    assert rows[-1].receptive_field == "all"
