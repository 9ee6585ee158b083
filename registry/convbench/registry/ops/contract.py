"""The ops of the contract: what a backend may implement, and what each call must return.

An implementation takes and returns what `torch.nn.functional` does. The reference is torch's own op in
float64, which shares no code path with float32 kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.ops.fused import fused_ops
from convbench.registry.ops.op import Op
from convbench.registry.ops.sequential import sequential_op
from convbench.registry.ops.window import pair

__all__ = ["OPS", "Op", "avg_pool2d", "conv2d", "max_pool2d"]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W'): cross-correlation, as torch calls it."""
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): the largest value in each window; padding never wins."""
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): the mean of each window."""
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _convolution_flops(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Two for every multiplication and addition, as usual; the bias is not counted."""
    return 2 * output.numel() * weight.shape[1:].numel()


def _window_flops(output: Tensor, input: Tensor, kernel_size: Any, *_: Any, **__: Any) -> int:
    """One for every element a window covers."""
    height, width = pair(kernel_size, "kernel_size")
    return output.numel() * height * width


def _window_size(call: Mapping[str, Any]) -> int:
    height, width = pair(call["kernel_size"], "kernel_size")
    return height * width


def _avg_pool2d_of_squares(input: Tensor, kernel_size: Any, **options: Any) -> Tensor:
    """The terms of a mean are shares of the input's values, and the shares are to be squared too."""

    def total(values: Tensor) -> Tensor:
        return avg_pool2d(values, kernel_size, **{**options, "divisor_override": 1})

    ones = torch.ones_like(input)
    share = avg_pool2d(ones, kernel_size, **options) / total(ones)
    return total(input) * share.square()


_SINGLE = (
    Op(
        name="conv2d",
        reference=conv2d,
        functions=(torch.conv2d,),
        modules=("Conv2d",),
        tensors=("input", "weight", "bias"),
        multilinear=True,
        of_squares=conv2d,
        flops=_convolution_flops,
        reduction=lambda call: int(call["weight"].shape[1:].numel()) + 1,
    ),
    Op(
        name="max_pool2d",
        reference=max_pool2d,
        functions=(F.max_pool2d, torch.max_pool2d),
        modules=("MaxPool2d",),
        tensors=("input",),
        multilinear=False,
        of_squares=max_pool2d,
        flops=_window_flops,
        reduction=_window_size,
    ),
    Op(
        name="avg_pool2d",
        reference=avg_pool2d,
        functions=(F.avg_pool2d,),
        modules=("AvgPool2d",),
        tensors=("input",),
        multilinear=True,
        of_squares=_avg_pool2d_of_squares,
        flops=_window_flops,
        reduction=_window_size,
    ),
)

_FUSED = fused_ops(*_SINGLE)
OPS: Mapping[str, Op] = MappingProxyType(
    {op.name: op for op in (*_SINGLE, *_FUSED, sequential_op(_SINGLE[0], _FUSED))}
)
