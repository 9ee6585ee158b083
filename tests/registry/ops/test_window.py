"""Window arithmetic against torch, over random calls."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convbench.registry import Unsupported
from convbench.registry.ops.window import Window, conv2d_window, pair, pool2d_window

SWEEP = 400


REFUSALS = (RuntimeError, ValueError, TypeError)  # what torch raises for arguments it does not take


def choose(random: random.Random, *values: int) -> int | tuple[int, int]:
    """A value for both directions, or one for each."""
    both = (random.choice(values), random.choice(values))
    return both if random.random() < 0.5 else both[0]


def convolutions() -> Iterator[tuple[Any, ...]]:
    draw = random.Random(1)
    for _ in range(SWEEP):
        groups = draw.choice([1, 1, 2, 3])
        channels = 6 if draw.random() < 0.9 else 5
        batch = draw.choice([0, 1, 2])
        image = torch.ones(batch, channels, draw.randint(1, 9), draw.randint(1, 9))
        weight = torch.ones(6, 6 // groups, draw.randint(1, 4), draw.randint(1, 4))
        bias = torch.ones(draw.choice([6, 6, 6, 5])) if draw.random() < 0.5 else None
        padding = draw.choice(["same", "valid", *(choose(draw, -1, 0, 0, 1, 1, 2, 3) for _ in range(4))])
        stride = choose(draw, 1, 1, 1, 2, 3) if draw.random() < 0.95 else 0
        # torch overlooks a dilation of 0 in an empty batch
        dilation = choose(draw, 1, 1, 2, 3) if batch == 0 or draw.random() < 0.95 else 0
        yield image, weight, bias, stride, padding, dilation, groups


def poolings() -> Iterator[tuple[Any, ...]]:
    draw = random.Random(2)
    for _ in range(SWEEP):
        image = torch.ones(draw.choice([1, 2]), 2, draw.randint(1, 11), draw.randint(1, 11))
        stride = draw.choice([None, choose(draw, 1, 2, 3, 4)]) if draw.random() < 0.95 else 0
        yield image, choose(draw, 1, 2, 3, 4), stride, choose(draw, 0, 0, 1, 2), draw.random() < 0.5


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution_windows_are_torchs() -> None:
    answered = 0
    for call in convolutions():
        try:
            output = F.conv2d(*call)
        except REFUSALS:
            with pytest.raises((ValueError, TypeError)):
                conv2d_window(*call)
            continue
        window = conv2d_window(*call)
        assert window.output_size == output.shape[-2:], call
        answered += 1
        image, weight, _, stride, _, dilation, groups = call
        by_hand = F.conv2d(F.pad(image, window.pad), weight, None, stride, 0, dilation, groups)
        assert by_hand.shape == output.shape
        assert torch.equal(by_hand, F.conv2d(image, weight, None, *call[3:])), call
    assert SWEEP / 4 < answered < SWEEP * 3 / 4  # both kinds of call are in the sweep


def test_max_pooling_windows_are_torchs() -> None:
    draw = random.Random(3)
    answered = 0
    for image, kernel_size, stride, padding, ceil_mode in poolings():
        call = (image, kernel_size, stride, padding, choose(draw, 1, 1, 2), ceil_mode)
        try:
            output = F.max_pool2d(*call)
        except REFUSALS:
            with pytest.raises((ValueError, TypeError)):
                pool2d_window(*call)
            continue
        window = pool2d_window(*call)
        assert window.output_size == output.shape[-2:], call
        padded = F.pad(image, window.pad, value=float("-inf"))
        assert torch.equal(slid(window, padded, torch.amax), output), call
        answered += 1
    assert SWEEP / 4 < answered < SWEEP


@pytest.mark.parametrize("include_padding", [True, False])
def test_average_pooling_counts_are_torchs(include_padding: bool) -> None:
    answered = 0
    for image, kernel_size, stride, padding, ceil_mode in poolings():
        call = (image, kernel_size, stride, padding, ceil_mode, include_padding)
        try:
            output = F.avg_pool2d(*call)
        except REFUSALS:
            with pytest.raises((ValueError, TypeError)):
                pool2d_window(image, kernel_size, stride, padding, 1, ceil_mode)
            continue
        window = pool2d_window(image, kernel_size, stride, padding, 1, ceil_mode)
        rows, columns = window.counts((image.shape[-2], image.shape[-1]), include_padding)
        sums = slid(window, F.pad(image, window.pad), torch.sum)
        counts = torch.tensor(rows)[:, None] * torch.tensor(columns)
        torch.testing.assert_close(sums / counts, output)
        answered += 1
    assert SWEEP / 4 < answered < SWEEP


def slid(window: Window, images: torch.Tensor, reduce: Any) -> torch.Tensor:
    """`reduce` over the window at every output position."""
    height, width = window.output_size
    rows = [
        torch.stack([reduce(images[(..., *window.at(i, j))], dim=(-2, -1)) for j in range(width)], dim=-1)
        for i in range(height)
    ]
    return torch.stack(rows, dim=-2)


def test_same_padding_pads_an_odd_total_at_the_end() -> None:
    window = conv2d_window(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 4, 3), None, 1, "same", 1, 1)
    assert (window.before, window.after, window.pad) == ((1, 1), (2, 1), (1, 1, 1, 2))


@pytest.mark.parametrize(
    ("value", "expected"), [(3, (3, 3)), ((1, 2), (1, 2)), ([1, 2], (1, 2)), ((4,), (4, 4))]
)
def test_pair(value: Any, expected: tuple[int, int]) -> None:
    assert pair(value, "stride") == expected


@pytest.mark.parametrize("value", [(), (1, 2, 3), 1.5, (1, 1.5), "12", None])
def test_no_pair(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        pair(value, "stride")


def test_a_bias_of_another_dtype_is_refused_as_torch_refuses_it() -> None:
    image, weight, bias = torch.ones(1, 1, 3, 3), torch.ones(2, 1, 3, 3), torch.ones(2, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        F.conv2d(image, weight, bias)
    with pytest.raises(ValueError, match=r"bias must be torch\.float32 of shape \(2,\), not torch\.float64"):
        conv2d_window(image, weight, bias, 1, 0, 1, 1)


def test_a_single_image_is_unsupported_and_not_wrong() -> None:
    with pytest.raises(Unsupported, match="without a batch dimension"):
        conv2d_window(torch.ones(1, 3, 3), torch.ones(2, 1, 3, 3), None, 1, 0, 1, 1)
    with pytest.raises(Unsupported, match="without a batch dimension"):
        pool2d_window(torch.ones(1, 4, 4), 2, None, 0)
