"""`loops`: the formula, one Python iteration per output position.

At each position the window is multiplied with the kernel and summed, for the whole batch and all channels in
one expression (Dive into Deep Learning, 7.2 to 7.5):

    Y[n, o, i, j] = b[o] + sum over c, u, v of
        X[n, c, i*stride + u*dilation, j*stride + v*dilation] * W[o, c, u, v]

Gradients come from autograd, which walks the same positions back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, hookimpl
from convbench.registry.ops.window import (
    IntPair,
    Window,
    conv2d_window,
    mean_divisor,
    of_the_image,
    pool2d_window,
)

if TYPE_CHECKING:
    from torch import Tensor


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation: (N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    import torch.nn.functional as F

    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    images = F.pad(input, window.pad).unflatten(1, (groups, -1))  # (N, groups, C/groups, H, W)
    kernels = weight.unflatten(0, (groups, -1))  # (groups, O/groups, C/groups, kh, kw)

    def value(i: int, j: int) -> Tensor:  # (N, O)
        rows, columns = window.at(i, j)
        patch = images[..., rows, columns].unsqueeze(2)
        per_group: Tensor = (patch * kernels).sum(dim=(-3, -2, -1))
        return per_group.flatten(1)

    output = _at_every_position(window, value)
    return output if bias is None else output + bias[:, None, None]


def max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window: (N, C, H, W) -> (N, C, H', W')."""
    import torch.nn.functional as F

    window = pool2d_window(input, kernel_size, stride, padding, dilation, ceil_mode)
    images = F.pad(input, window.pad, value=-math.inf)

    def value(i: int, j: int) -> Tensor:  # (N, C)
        rows, columns = window.at(i, j)
        return images[..., rows, columns].flatten(-2).max(dim=-1).values

    return of_the_image(_at_every_position(window, value), input, window)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window: (N, C, H, W) -> (N, C, H', W').

    The mean is over the window's part inside the image, or inside the padded image with `count_include_pad`;
    `divisor_override` replaces the count.
    """
    import torch.nn.functional as F

    divisor_override = mean_divisor(divisor_override)
    window = pool2d_window(input, kernel_size, stride, padding, 1, ceil_mode)
    images = F.pad(input, window.pad)
    high, wide = window.counts((input.shape[-2], input.shape[-1]), count_include_pad)

    def value(i: int, j: int) -> Tensor:  # (N, C)
        rows, columns = window.at(i, j)
        return images[..., rows, columns].sum(dim=(-2, -1)) / (divisor_override or high[i] * wide[j])

    return _at_every_position(window, value)


def _at_every_position(window: Window, value: Callable[[int, int], Tensor]) -> Tensor:
    """The loops themselves: `value` at every output position, (N, C) each, laid out as (N, C, H', W')."""
    import torch

    height, width = window.output_size
    values = [value(i, j) for i in range(height) for j in range(width)]
    return torch.stack(values, dim=-1).reshape(*values[0].shape, height, width)


def load() -> Mapping[str, Any]:
    return {"conv2d": conv2d, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="loops",
        summary="the formula: one Python iteration per output position",
        load=load,
        devices=("cpu", "cuda"),
        dtypes=("float32", "float64"),
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )
