"""`shift`: a sum of shifted images, one for each tap of the kernel.

The formula with its loops exchanged: instead of a window at every position, every position at once for each
of the kh·kw taps. Tap (u, v) contributes the input shifted by (u, v), its channels mixed by the tap's (O, C)
matrix:

    Y = b + sum over u, v of  W[:, :, u, v] @ X[:, :, u*dilation::stride, v*dilation::stride]

Pooling is a running maximum, or a running sum, over the same shifts.

Cost: C/groups·kh·kw multiplications per output, as the formula itself; kh·kw matrix products of inner
dimension C/groups, and no matrix of patches: one shifted copy of the input at a time going forward, though
autograd keeps all of them for the weight's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
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
    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    taps = weight.flatten(2).unbind(-1)  # kh·kw of (O, C/groups)
    views = shifts(input, window, fill=0.0)
    output: Tensor = sum(mix(tap, view, groups) for tap, view in zip(taps, views, strict=True))  # type: ignore[assignment]
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
    import torch

    window = pool2d_window(input, kernel_size, stride, padding, dilation, ceil_mode)
    first, *others = shifts(input, window, fill=-math.inf)
    largest = first.clone()
    for shifted in others:  # of equals the first one wins, and NaN wins over all, as in torch
        largest = torch.where((shifted > largest) | shifted.isnan(), shifted, largest)
    return of_the_image(largest, input, window)


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
    divisor_override = mean_divisor(divisor_override)
    window = pool2d_window(input, kernel_size, stride, padding, 1, ceil_mode)
    total: Tensor = sum(shifts(input, window, fill=0.0))  # type: ignore[assignment]
    if divisor_override is not None:
        return total / divisor_override
    high, wide = window.counts((input.shape[-2], input.shape[-1]), count_include_pad)
    return total / total.new_tensor([[rows * columns for columns in wide] for rows in high])


def shifts(input: Tensor, window: Window, fill: float) -> Iterator[Tensor]:
    """What each tap of the window sees at every output position, in row-major order: views (N, C, H', W')."""
    import torch.nn.functional as F

    images = F.pad(input, window.pad, value=fill)
    (kh, kw), (height, width) = window.kernel_size, window.output_size
    for u in range(kh):
        for v in range(kw):
            top, left = u * window.dilation[0], v * window.dilation[1]
            rows = slice(top, top + (height - 1) * window.stride[0] + 1, window.stride[0])
            columns = slice(left, left + (width - 1) * window.stride[1] + 1, window.stride[1])
            yield images[..., rows, columns]


def mix(tap: Tensor, pixels: Tensor, groups: int) -> Tensor:
    """Channels to filters at every pixel: (O, C/groups), (N, C, H', W') -> (N, O, H', W')."""
    matrices = tap.unflatten(0, (groups, -1))  # (groups, O/groups, C/groups)
    columns = pixels.flatten(2).unflatten(1, (groups, -1))  # (N, groups, C/groups, H'·W')
    mixed: Tensor = matrices @ columns
    return mixed.view(pixels.shape[0], tap.shape[0], *pixels.shape[2:])


def load() -> Mapping[str, Any]:
    return {"conv2d": conv2d, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="shift",
        summary="a sum of shifted images, one matrix product for each tap of the kernel",
        load=load,
        devices=("cpu", "cuda"),
        dtypes=("float32", "float64"),
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )
