"""`fft`: linear correlation from circular transforms, at the stated number of products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from convbench.plugins.backends import fft


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (13, 5)])
def test_nothing_wraps_around_the_edges(size: tuple[int, int]) -> None:
    images = torch.zeros(1, 1, *size, dtype=torch.float64)
    images[..., -1, -1] = 1e6  # one bright pixel in the last corner
    kernel = torch.rand(1, 1, 3, 4, dtype=torch.float64) + 1
    output = fft.conv2d(images, kernel, padding=(1, 2))
    torch.testing.assert_close(output, F.conv2d(images, kernel, padding=(1, 2)), rtol=0, atol=1e-8)
    assert output[..., : size[0] - 2, :].abs().max() < 1e-8


def test_a_kernel_as_large_as_the_image_is_an_inner_product() -> None:
    images, kernel = torch.randn(2, 3, 7, 9), torch.randn(4, 3, 7, 9)
    expected = torch.einsum("nchw,ochw->no", images, kernel)
    torch.testing.assert_close(fft.conv2d(images, kernel)[..., 0, 0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_products_per_output_do_not_depend_on_the_kernel(kernel: int) -> None:
    images, kernels = torch.randn(2, 6, 16, 15), torch.randn(4, 3, kernel, kernel)
    with FlopCounterMode(display=False) as counter:  # it counts matrix products only, a complex one as a real
        output = fft.conv2d(images, kernels, groups=2)
    frequencies = 16 * (15 // 2 + 1)
    assert counter.get_total_flops() / 2 == 2 * 4 * 3 * frequencies  # N·O·C/groups at every frequency
    per_output = counter.get_total_flops() / 2 / output.numel()
    points_per_output = 16 * 15 / (output.shape[2] * output.shape[3])
    assert per_output == pytest.approx(3 * points_per_output / 2, rel=0.1)  # the half that symmetry leaves


def test_dilation_spreads_the_kernel() -> None:
    spread = fft.spread(torch.ones(1, 1, 2, 3), (3, 2))
    assert spread[0, 0].tolist() == [[1, 0, 1, 0, 1], [0] * 5, [0] * 5, [1, 0, 1, 0, 1]]


def test_lengths_are_rounded_up_to_products_of_two_three_and_five() -> None:
    assert [fft.fast_length(length) for length in (1, 7, 11, 13, 17, 30, 31, 227)] == [
        1, 8, 12, 15, 18, 30, 32, 240,
    ]  # fmt: skip
