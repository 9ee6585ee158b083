"""Convolution and pooling with the activation beside them, as ops of torch (`torch_ops.py`).

A ReLU is one comparison more for each register of sums; sigmoid and tanh follow while a band of the output, or a
plane of the input, is still in the cache. What a gradient needs is what came out of the activation: the op's own
output, or for a mean a tensor that the pass over the input writes by the way. Of a ReLU the input tells as much.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.native.convolution import (
    OPTIONS,
    call,
    checked,
    convolution,
    fake_convolution,
)
from convbench.plugins.backends.native.pooling import (
    WINDOW,
    fake_largest,
    fake_pool,
    largest_of,
    mean_gradient,
    mean_of,
    mean_options,
    refuse_large,
    window_options,
)
from convbench.plugins.backends.native.torch_ops import EAGER, OPS, register
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import being_traced
from convbench.registry.ops.window import IntPair

RELU, SIGMOID, TANH = 1, 2, 3  # `Activation` of activation.hpp
NUMBERS = {"relu": RELU, "sigmoid": SIGMOID, "tanh": TANH}


def conv2d_activation(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    activation: str = "relu",
) -> Tensor:
    """activation(conv2d(...)): (N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    number = _number(activation)
    traced = being_traced(input)
    options = checked(traced, input, weight, bias, stride, padding, dilation, groups)
    output: Tensor = (OPS if traced else EAGER).conv2d_activation(input, weight, bias, *options, number)
    return output


def activation_max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    activation: str = "relu",
) -> Tensor:
    """The largest activation in each window: (N, C, H, W) -> (N, C, H', W')."""
    number = _number(activation)
    traced = being_traced(input)
    options = window_options(traced, input, kernel_size, stride, padding, dilation, ceil_mode)
    refuse_large(options[1])
    largest: Tensor
    largest, _ = (OPS if traced else EAGER).activation_max_pool2d(input, *options, number)
    return largest


def activation_avg_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    activation: str = "relu",
) -> Tensor:
    """The mean activation of each window: (N, C, H, W) -> (N, C, H', W')."""
    number = _number(activation)
    traced = being_traced(input)
    options = mean_options(
        traced, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    mean: Tensor
    mean, _ = (OPS if traced else EAGER).activation_avg_pool2d(input, *options, number)
    return mean


def _number(activation: str) -> int:
    return NUMBERS[activation_of(activation).name]


# --- the slope -------------------------------------------------------------------------------------------------


def _slope_gradient(upstream: Tensor, output: Tensor, activation: int) -> Tensor:
    """upstream · f'(x) of the same shape, from f(x)."""
    gradient = torch.empty_like(upstream, memory_format=torch.contiguous_format)
    call("activation_gradient", _elements(upstream.numel(), activation), upstream, output, gradient)
    return gradient


@lru_cache(maxsize=1024)
def _elements(count: int, activation: int) -> Any:
    """`Elements` of core.hpp."""
    return (ctypes.c_int64 * 2)(count, activation)


def _slope_and_curvature(output: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    """f'(x), and its derivative by f(x): how it changes with the output."""
    if activation == RELU:
        return (~(output <= 0)).to(output.dtype), torch.zeros_like(output)
    if activation == SIGMOID:
        return output * (1 - output), 1 - 2 * output
    return 1 - output.square(), -2 * output


def _of_slope_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    upstream, output = ctx.saved_tensors
    _, curvature = _slope_and_curvature(output, ctx.activation)
    of_output = change * upstream * curvature
    return calls.activation_gradient(change, output, ctx.activation), of_output, None


# --- derivatives of the fused ops -------------------------------------------------------------------------------


def _of_convolution(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    input, weight, output = ctx.saved_tensors
    upstream = calls.activation_gradient(upstream, output, ctx.activation)
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = calls.conv2d_input_gradient(upstream, weight, input.shape[2:], *ctx.options)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        of_weight, of_bias = calls.conv2d_weight_gradient(upstream, input, weight.shape[2:], *ctx.options)
    return of_input, of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None, None, None, None


def _of_largest(calls: Any, ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    output, choices = ctx.saved_tensors
    upstream = calls.activation_gradient(upstream, output, ctx.activation)
    gradient = calls.max_pool2d_gradient(upstream, choices, *ctx.options)
    return gradient, None, None, None, None, None, None


def _of_mean(calls: Any, ctx: Any, upstream: Tensor | None, of_kept: Tensor | None) -> tuple[Any, ...]:
    (kept,) = ctx.saved_tensors
    gradient = None
    if upstream is not None:
        gradient = calls.activation_avg_pool2d_gradient(upstream, kept, *ctx.options, ctx.activation)
    if of_kept is not None and ctx.activation != RELU:  # in gradients of gradients only
        direct = calls.activation_gradient(of_kept, kept, ctx.activation)
        gradient = direct if gradient is None else gradient + direct
    return gradient, None, None, None, None, None, None, None


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    upstream, activated = ctx.saved_tensors
    slope, curvature = _slope_and_curvature(activated, ctx.activation)
    of_upstream = calls.avg_pool2d(change * slope, upstream.shape[2:], *ctx.options)
    shared = calls.avg_pool2d_gradient(upstream, activated.shape[2:], *ctx.options)
    return of_upstream, change * shared * curvature, None, None, None, None, None, None


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.options, ctx.activation = inputs[3:-1], inputs[-1]


def _keep_largest(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output)
    ctx.options, ctx.activation = (inputs[0].shape[2:], *inputs[2:-1]), inputs[-1]


def _keep_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0] if inputs[-1] == RELU else output[1])
    ctx.options, ctx.activation = inputs[2:-1], inputs[-1]


def _keep_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options, ctx.activation = inputs[2:-1], inputs[-1]


# --- both kinds of ops ------------------------------------------------------------------------------------------


def _mean(
    input: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: int,
    divisor: int,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (N, C, H', W'), and the activations where the input does not tell their slopes."""
    activated = input.new_empty(0 if activation == RELU else input.shape)
    options = size, kernel, stride, padding, count_padding, divisor, activation
    return mean_of(input, *options, None if activation == RELU else activated), activated


def _fake_mean(input: Tensor, size: Sequence[int], *options: Any) -> tuple[Tensor, Tensor]:
    return fake_pool(input, size), input.new_empty(0 if options[-1] == RELU else input.shape)


def _mean_gradient(
    upstream: Tensor,
    activated: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: int,
    divisor: int,
    activation: int,
) -> Tensor:
    """(N, C, H', W'), (N, C, H, W) -> (N, C, H, W)."""
    options = kernel, stride, padding, count_padding, divisor, activated, activation
    return mean_gradient(upstream, activated.shape[2:], *options)


register(
    "activation_gradient(Tensor upstream, Tensor output, int activation) -> Tensor",
    _slope_gradient,
    lambda upstream, *_: torch.empty_like(upstream, memory_format=torch.contiguous_format),
    _of_slope_gradient,
    _keep_both,
)
register(
    f"conv2d_activation(Tensor input, Tensor weight, Tensor? bias, {OPTIONS}, int activation) -> Tensor",
    convolution,
    lambda input, weight, bias, *options: fake_convolution(input, weight, bias, *options[:-1]),
    _of_convolution,
    _keep_convolution,
)
register(
    f"activation_max_pool2d(Tensor input, SymInt[] size, {WINDOW}, int[] dilation, int activation) "
    "-> (Tensor, Tensor)",
    largest_of,
    fake_largest,
    _of_largest,
    _keep_largest,
)
register(
    f"activation_avg_pool2d(Tensor input, SymInt[] size, {WINDOW}, int count_padding, int divisor, "
    "int activation) -> (Tensor, Tensor)",
    _mean,
    _fake_mean,
    _of_mean,
    _keep_mean,
)
register(
    f"activation_avg_pool2d_gradient(Tensor upstream, Tensor activated, {WINDOW}, int count_padding, int divisor, "
    "int activation) -> Tensor",
    _mean_gradient,
    lambda upstream, activated, *_: torch.empty_like(activated, memory_format=torch.contiguous_format),
    _of_mean_gradient,
    _keep_both,
)
