"""`max_pool2d` and `avg_pool2d` as ops of torch, with and without an activation before them.

The gradient of a mean is linear, and its derivative is the mean again. The gradient of a maximum adds each
value to the place that was chosen; its derivative gathers from there, with torch. The slope of an activation
follows from its output: the maximum itself, or for a mean a tensor that the same pass over the input writes.
For a ReLU the input is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.native.convolution import (
    ACTIVATIONS,
    LIBRARY,
    call,
    int64s,
    refuse_others,
)
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import slope_and_curvature
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import Pair, PoolingOptions, being_traced, pooling_options
from convbench.registry.ops.window import IntPair, mean_divisor

OPS, EAGER, register = LIBRARY.ops, LIBRARY.eager, LIBRARY.add
MOST_PIXELS = 2**16  # of a window, whose places are kept as 16 bits


def max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window: (N, C, H, W) -> (N, C, H', W')."""
    traced = being_traced(input)
    options = window_options(traced, input, kernel_size, stride, padding, dilation, ceil_mode)
    refuse_large(options[1])
    largest: Tensor
    largest, _ = OPS.max_pool2d(input, *options) if traced else EAGER.max_pool2d(input, *options)
    return largest


def avg_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window: (N, C, H, W) -> (N, C, H', W')."""
    traced = being_traced(input)
    options = mean_options(
        traced, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    mean: Tensor = OPS.avg_pool2d(input, *options) if traced else EAGER.avg_pool2d(input, *options)
    return mean


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
    name = activation_of(activation).name
    traced = being_traced(input)
    options = window_options(traced, input, kernel_size, stride, padding, dilation, ceil_mode)
    refuse_large(options[1])
    largest: Tensor
    largest, _ = (OPS if traced else EAGER).activation_max_pool2d(input, *options, name)
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
    name = activation_of(activation).name
    traced = being_traced(input)
    options = mean_options(
        traced, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    mean: Tensor
    mean, _ = (OPS if traced else EAGER).activation_avg_pool2d(input, *options, name)
    return mean


def refuse_large(kernel: Sequence[int]) -> None:
    """Places in a window are kept as 16 bits."""
    if kernel[0] * kernel[1] > MOST_PIXELS:
        raise Unsupported(f"windows of more than {MOST_PIXELS} pixels")


def mean_options(
    traced: bool,
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> tuple[Pair, Pair, Pair, Pair, int, int]:
    """Output size, kernel size, stride, padding, whether padding counts, and the divisor or 0."""
    divisor = mean_divisor(divisor_override)
    size, kernel, steps, pad, _ = window_options(traced, input, kernel_size, stride, padding, 1, ceil_mode)
    return size, kernel, steps, pad, int(count_include_pad), divisor or 0


def window_options(traced: bool, input: Tensor, *options: Any) -> PoolingOptions:
    """Output size, kernel size, stride, padding and dilation, as torch would take them."""
    refuse_others(input)
    return pooling_options(traced, input, *options)


# --- the kernels ------------------------------------------------------------------------------------------------

Ints = Sequence[int]


def largest_of(
    input: Tensor,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> the largest values (N, C, H', W'), and their places in their windows."""
    output = input.new_empty((*input.shape[:2], *size))
    choices = output.new_empty(output.shape, dtype=torch.int16)
    options = kernel, stride, padding, dilation, size, (0, 0), (activation,)
    call("max_pool2d", _pooling(input.shape, *map(tuple, options)), input, output, choices)
    return output, choices


def _largest_gradient(
    grad_output: Tensor,
    choices: Tensor,
    image: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value added to the place that was chosen."""
    gradient = grad_output.new_empty((*grad_output.shape[:2], *image))
    options = kernel, stride, padding, dilation, grad_output.shape[2:]
    call(
        "max_pool2d_gradient", _pooling(gradient.shape, *map(tuple, options)), grad_output, choices, gradient
    )
    return gradient


def mean_of(
    input: Tensor,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: int,
    divisor: int,
    activation: str = "none",
    activated: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'); activations of the input are written to `activated` where it is there."""
    output = input.new_empty((*input.shape[:2], *size))
    options = kernel, stride, padding, (1, 1), size, (count_padding, divisor, activation)
    call("avg_pool2d", _pooling(input.shape, *map(tuple, options)), input, output, activated)
    return output


def mean_gradient(
    grad_output: Tensor,
    image: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: int,
    divisor: int,
    activated: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value shared out among its window, times an activation's slope."""
    gradient = grad_output.new_empty((*grad_output.shape[:2], *image))
    options = kernel, stride, padding, (1, 1), grad_output.shape[2:], (count_padding, divisor, activation)
    call(
        "avg_pool2d_gradient",
        _pooling(gradient.shape, *map(tuple, options)),
        grad_output,
        activated,
        gradient,
    )
    return gradient


def _activated_mean(
    input: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: int,
    divisor: int,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (N, C, H', W'), and the activations where the input does not tell their slopes."""
    activated = input.new_empty(0 if activation == "relu" else input.shape)
    options = size, kernel, stride, padding, count_padding, divisor, activation
    return mean_of(input, *options, None if activation == "relu" else activated), activated


def _activated_mean_gradient(
    grad_output: Tensor,
    activated: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: int,
    divisor: int,
    activation: str,
) -> Tensor:
    """(N, C, H', W'), (N, C, H, W) -> (N, C, H, W)."""
    options = kernel, stride, padding, count_padding, divisor, activated, activation
    return mean_gradient(grad_output, activated.shape[2:], *options)


@lru_cache(maxsize=1024)
def _pooling(shape: torch.Size, *options: tuple[int | str, ...]) -> Any:
    """`Pooling` of core.hpp."""
    given = (value for pair in options for value in pair)
    numbers = [ACTIVATIONS.index(value) if isinstance(value, str) else value for value in given]
    numbers = [shape[0] * shape[1], *shape[2:], *numbers]
    return int64s([*numbers, *[0] * (16 - len(numbers))])  # what is not told is zero


# --- their derivatives -------------------------------------------------------------------------------------------


def _of_largest(calls: Any, ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
    gradient = calls.max_pool2d_gradient(grad_output, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None, None, None


def _of_largest_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    """What `change` (N, C, H, W) holds where the windows' largest values were: (N, C, H', W')."""
    (choices,) = ctx.saved_tensors
    kernel, stride, padding, dilation = ctx.options
    place = choices.long() & 0xFFFF
    rows = (
        torch.arange(choices.shape[2], device=change.device)[:, None] * stride[0]
        + place // kernel[1] * dilation[0]
        - padding[0]
    )
    columns = (
        torch.arange(choices.shape[3], device=change.device) * stride[1]
        + place % kernel[1] * dilation[1]
        - padding[1]
    )
    flat = (rows * change.shape[3] + columns).flatten(2)
    chosen = change.flatten(2).gather(2, flat).reshape(choices.shape)
    return chosen, None, None, None, None, None, None


def _of_mean(calls: Any, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d_gradient(grad_output, *ctx.options), None, None, None, None, None, None


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d(change, *ctx.options), None, None, None, None, None, None


def _of_activated_largest(calls: Any, ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
    output, choices = ctx.saved_tensors
    grad_output = calls.activation_gradient(grad_output, output, ctx.activation)
    gradient = calls.max_pool2d_gradient(grad_output, choices, *ctx.options)
    return gradient, None, None, None, None, None, None


def _of_activated_mean(
    calls: Any, ctx: Any, grad_output: Tensor | None, of_kept: Tensor | None
) -> tuple[Any, ...]:
    (kept,) = ctx.saved_tensors
    gradient = None
    if grad_output is not None:
        gradient = calls.activation_avg_pool2d_gradient(grad_output, kept, *ctx.options, ctx.activation)
    if of_kept is not None and ctx.activation != "relu":  # in gradients of gradients only
        direct = calls.activation_gradient(of_kept, kept, ctx.activation)
        gradient = direct if gradient is None else gradient + direct
    return gradient, None, None, None, None, None, None, None


def _of_activated_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    grad_output, activated = ctx.saved_tensors
    slope, curvature = slope_and_curvature(activated, ctx.activation)
    of_grad_output = calls.avg_pool2d(change * slope, grad_output.shape[2:], *ctx.options)
    shared = calls.avg_pool2d_gradient(grad_output, activated.shape[2:], *ctx.options)
    return of_grad_output, change * shared * curvature, None, None, None, None, None, None


def _keep_choices(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.options = inputs[0].shape[2:], *inputs[2:]


def _keep_the_choices_given(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.options = inputs[3:]


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The size that a mean comes from is the one that its gradient goes to, and the other way round."""
    ctx.options = inputs[0].shape[2:], *inputs[2:]


def _keep_activated_largest(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output)
    ctx.options, ctx.activation = (inputs[0].shape[2:], *inputs[2:-1]), inputs[-1]


def _keep_activated_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0] if inputs[-1] == "relu" else output[1])
    ctx.options, ctx.activation = inputs[2:-1], inputs[-1]


def _keep_activated_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options, ctx.activation = inputs[2:-1], inputs[-1]


# --- both kinds of ops ------------------------------------------------------------------------------------------


def fake_pool(input: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return input.new_empty((*input.shape[:2], *size))


def fake_largest(input: Tensor, size: Sequence[int], *_: Any) -> tuple[Tensor, Tensor]:
    output = fake_pool(input, size)
    return output, torch.empty_like(output, dtype=torch.int16)


def _fake_activated_mean(input: Tensor, size: Sequence[int], *options: Any) -> tuple[Tensor, Tensor]:
    return fake_pool(input, size), input.new_empty(0 if options[-1] == "relu" else input.shape)


WINDOW = "int[] kernel, int[] stride, int[] padding"
register(
    f"max_pool2d(Tensor input, SymInt[] size, {WINDOW}, int[] dilation) -> (Tensor, Tensor)",
    largest_of,
    fake_largest,
    _of_largest,
    _keep_choices,
)
register(
    f"max_pool2d_gradient(Tensor grad_output, Tensor choices, SymInt[] size, {WINDOW}, int[] dilation) -> Tensor",
    _largest_gradient,
    lambda grad_output, choices, *options: fake_pool(grad_output, *options),
    _of_largest_gradient,
    _keep_the_choices_given,
)
register(
    f"avg_pool2d(Tensor input, SymInt[] size, {WINDOW}, int count_padding, int divisor) -> Tensor",
    mean_of,
    fake_pool,
    _of_mean,
    _keep_size,
)
register(
    f"avg_pool2d_gradient(Tensor grad_output, SymInt[] size, {WINDOW}, int count_padding, int divisor) -> Tensor",
    mean_gradient,
    fake_pool,
    _of_mean_gradient,
    _keep_size,
)
register(
    f"activation_max_pool2d(Tensor input, SymInt[] size, {WINDOW}, int[] dilation, str activation) "
    "-> (Tensor, Tensor)",
    largest_of,
    fake_largest,
    _of_activated_largest,
    _keep_activated_largest,
)
register(
    f"activation_avg_pool2d(Tensor input, SymInt[] size, {WINDOW}, int count_padding, int divisor, "
    "str activation) -> (Tensor, Tensor)",
    _activated_mean,
    _fake_activated_mean,
    _of_activated_mean,
    _keep_activated_mean,
)
register(
    f"activation_avg_pool2d_gradient(Tensor grad_output, Tensor activated, {WINDOW}, int count_padding, "
    "int divisor, str activation) -> Tensor",
    _activated_mean_gradient,
    lambda grad_output, activated, *_: torch.empty_like(activated, memory_format=torch.contiguous_format),
    _of_activated_mean_gradient,
    _keep_activated_both,
)
