"""`max_pool2d` and `avg_pool2d` as ops of torch (`torch_ops.py`).

The gradient of a mean is linear, and its derivative is the mean again. That of a maximum hands each value to the
place that was chosen; its derivative gathers from there, which torch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.native.convolution import call, int64s, refuse_others
from convbench.plugins.backends.native.torch_ops import EAGER, OPS, register
from convbench.registry import Unsupported
from convbench.registry.ops.call_arguments import Pair, PoolingOptions, being_traced, pooling_options
from convbench.registry.ops.window import IntPair, mean_divisor

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
    activation: int = 0,
) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> the largest values (N, C, H', W'), and their places in their windows."""
    output = input.new_empty((*input.shape[:2], *size))
    choices = output.new_empty(output.shape, dtype=torch.int16)
    options = kernel, stride, padding, dilation, size, (0, 0), (activation,)
    call("max_pool2d", _pooling(input.shape, *map(tuple, options)), input, output, choices)
    return output, choices


def _largest_gradient(
    upstream: Tensor,
    choices: Tensor,
    image: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value added to the place that was chosen."""
    gradient = upstream.new_empty((*upstream.shape[:2], *image))
    options = kernel, stride, padding, dilation, upstream.shape[2:]
    call("max_pool2d_gradient", _pooling(gradient.shape, *map(tuple, options)), upstream, choices, gradient)
    return gradient


def mean_of(
    input: Tensor,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: int,
    divisor: int,
    activation: int = 0,
    activated: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'); activations of the input are written to `activated` where it is there."""
    output = input.new_empty((*input.shape[:2], *size))
    options = kernel, stride, padding, (1, 1), size, (count_padding, divisor, activation)
    call("avg_pool2d", _pooling(input.shape, *map(tuple, options)), input, output, activated)
    return output


def mean_gradient(
    upstream: Tensor,
    image: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: int,
    divisor: int,
    activated: Tensor | None = None,
    activation: int = 0,
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value shared out among its window, times an activation's slope."""
    gradient = upstream.new_empty((*upstream.shape[:2], *image))
    options = kernel, stride, padding, (1, 1), upstream.shape[2:], (count_padding, divisor, activation)
    call("avg_pool2d_gradient", _pooling(gradient.shape, *map(tuple, options)), upstream, activated, gradient)
    return gradient


@lru_cache(maxsize=1024)
def _pooling(shape: torch.Size, *options: tuple[int, ...]) -> Any:
    """`Pooling` of core.hpp."""
    numbers = [shape[0] * shape[1], *shape[2:], *(number for pair in options for number in pair)]
    return int64s([*numbers, *[0] * (16 - len(numbers))])  # what is not told is zero


# --- their derivatives -------------------------------------------------------------------------------------------


def _of_largest(calls: Any, ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    gradient = calls.max_pool2d_gradient(upstream, *ctx.saved_tensors, *ctx.options)
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


def _of_mean(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d_gradient(upstream, *ctx.options), None, None, None, None, None, None


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d(change, *ctx.options), None, None, None, None, None, None


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


# --- both kinds of ops ------------------------------------------------------------------------------------------


def fake_pool(input: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return input.new_empty((*input.shape[:2], *size))


def fake_largest(input: Tensor, size: Sequence[int], *_: Any) -> tuple[Tensor, Tensor]:
    output = fake_pool(input, size)
    return output, torch.empty_like(output, dtype=torch.int16)


WINDOW = "int[] kernel, int[] stride, int[] padding"
register(
    f"max_pool2d(Tensor input, SymInt[] size, {WINDOW}, int[] dilation) -> (Tensor, Tensor)",
    largest_of,
    fake_largest,
    _of_largest,
    _keep_choices,
)
register(
    f"max_pool2d_gradient(Tensor upstream, Tensor choices, SymInt[] size, {WINDOW}, int[] dilation) -> Tensor",
    _largest_gradient,
    lambda upstream, choices, *options: fake_pool(upstream, *options),
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
    f"avg_pool2d_gradient(Tensor upstream, SymInt[] size, {WINDOW}, int count_padding, int divisor) -> Tensor",
    mean_gradient,
    fake_pool,
    _of_mean_gradient,
    _keep_size,
)
