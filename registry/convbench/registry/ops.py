"""The ops of the contract: what a backend may implement, and what each call must answer.

An implementation takes and returns what `torch.nn.functional` does. The reference is torch's own op in
float64, which shares no code path with the float32 kernels it is held against.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.geometry import pair


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


@dataclass(frozen=True)
class Op:
    """One op of the contract.

    Attributes:
        name: as in `Backend.ops`.
        reference: the definition, in torch; run in float64 it is what answers are held against.
        functions: the torch functions whose calls this op can serve.
        modules: the `torch.nn` modules that make such calls.
        tensors: the differentiable tensor arguments.
        multilinear: linear in each tensor argument; otherwise a selection among the input's values.
        of_squares: the sum of the squares of the terms that `reference` sums, from tensors of squares; it bounds
            rounding errors (see `convbench.registry.tolerances`).
        flops: floating-point operations of a call, from its output and its arguments.
        reduction: how many terms are summed into one output, from the arguments by name.
    """

    name: str
    reference: Callable[..., Tensor]
    functions: tuple[Callable[..., Any], ...]
    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    multilinear: bool
    of_squares: Callable[..., Tensor]
    flops: Callable[..., int]
    reduction: Callable[[Mapping[str, Any]], int]

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, defaults filled in."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def factors(self, off: float) -> float:
        """By how much the factors of its products may be off, where they may be in general: 0 without products."""
        return off if "weight" in self.tensors else 0.0

    def on_meta(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """The arguments and the output of a call as shapes alone, which cost nothing."""
        shapes = {
            name: value.detach().to("meta") if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        return shapes, self.reference(**shapes)


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


OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.name: op
        for op in (
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
    }
)
