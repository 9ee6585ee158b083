"""`max_pool2d` and `avg_pool2d` as ops of torch, with and without an activation before them.

The gradient of a mean is linear, and its derivative is the mean again. That of a maximum hands each value to the
place that was chosen; its derivative gathers from there, which torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from convbench.plugins.backends.triton.availability import interpreted
from convbench.plugins.backends.triton.block_sizes import size_class
from convbench.plugins.backends.triton.convolution import refuse_others
from convbench.plugins.backends.triton.kernels.pooling import (
    avg_pool,
    avg_pool_gradient,
    max_pool,
    max_pool_gradient,
)
from convbench.plugins.backends.triton.torch_ops import LIBRARY, launch, wide
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import activation_gradient, channels_last, new_images
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import being_traced, pooling_options
from convbench.registry.ops.window import IntPair, mean_divisor

MOST_PIXELS = 2**15  # of a window, whose places are kept as 16 bits with a sign
BLOCKS = (1024,) if interpreted() else (256, 512, 1024)
Pair = tuple[int, int]


def max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window: (N, C, H, W) -> (N, C, H', W')."""
    return _largest_of(input, (kernel_size, stride, padding, dilation, ceil_mode), "none")


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
    return _largest_of(input, (kernel_size, stride, padding, dilation, ceil_mode), name)


def _largest_of(input: Tensor, call: tuple[Any, ...], activation: str) -> Tensor:
    refuse_others(input)
    compiled = being_traced(input)
    options = pooling_options(compiled, input, *call)
    if options[1][0] * options[1][1] > MOST_PIXELS:
        raise Unsupported(f"windows of more than {MOST_PIXELS} pixels")
    found: Tensor
    found, _ = (LIBRARY.ops if compiled else LIBRARY.eager).max_pool2d(input, *options, activation)
    return found


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
    call = kernel_size, stride, padding, 1, ceil_mode
    return _mean_of(input, call, count_include_pad, divisor_override, "none")


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
    call = kernel_size, stride, padding, 1, ceil_mode
    name = activation_of(activation).name
    return _mean_of(input, call, count_include_pad, divisor_override, name)


def _mean_of(
    input: Tensor, call: tuple[Any, ...], count_padding: bool, divisor: int | None, activation: str
) -> Tensor:
    divisor = mean_divisor(divisor)
    refuse_others(input)
    compiled = being_traced(input)
    size, kernel, steps, pad, _ = pooling_options(compiled, input, *call)
    options = size, kernel, steps, pad, count_padding, divisor or 0, activation
    found: Tensor = (LIBRARY.ops if compiled else LIBRARY.eager).avg_pool2d(input, *options)
    return found


# --- the launches -----------------------------------------------------------------------------------------------

Ints = Sequence[int]


def largest(
    input: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> the largest values (N, C, H', W'), and their places in their windows."""
    output = new_images(input, (*input.shape[:2], *size), channels_last(input))
    choices = torch.empty_like(output, dtype=torch.int16)
    _launch(
        _max_pool(), output, (input,), (output, choices),
        (*input.shape[2:], *size), (*stride, *padding, *dilation), kernel, ACTIVATION=activation,
    )  # fmt: skip
    return output, choices


def largest_gradient(
    grad_output: Tensor,
    choices: Tensor,
    size: Sequence[int],
    innermost: bool,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value added to the place that was chosen."""
    gradient = new_images(grad_output, (*grad_output.shape[:2], *size), innermost)
    _launch(
        _max_pool_gradient(), gradient, (grad_output, choices), (gradient,),
        (*size, *grad_output.shape[2:]), (*stride, *padding, *dilation), kernel,
    )  # fmt: skip
    return gradient


def mean(
    input: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: bool,
    divisor: int,
    activation: str,
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W')."""
    output = new_images(input, (*input.shape[:2], *size), channels_last(input))
    _launch(
        _avg_pool(), output, (input,), (output,),
        (*input.shape[2:], *size), (*stride, *padding, divisor), kernel,
        COUNT_PADDING=count_padding, ACTIVATION=activation,
    )  # fmt: skip
    return output


def mean_gradient(
    grad_output: Tensor,
    size: Sequence[int],
    innermost: bool,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: bool,
    divisor: int,
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value shared out among its window."""
    gradient = new_images(grad_output, (*grad_output.shape[:2], *size), innermost)
    _share_out(grad_output, gradient, gradient, (kernel, stride, padding, count_padding, divisor), "none")
    return gradient


def activated_mean_gradient(
    grad_output: Tensor,
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: bool,
    divisor: int,
    activation: str,
) -> Tensor:
    """(N, C, H', W'), (N, C, H, W) -> (N, C, H, W): the same, times the slope of an activation at the input."""
    gradient = new_images(grad_output, input.shape, channels_last(input))
    _share_out(grad_output, input, gradient, (kernel, stride, padding, count_padding, divisor), activation)
    return gradient


def _share_out(
    grad_output: Tensor, input: Tensor, gradient: Tensor, options: tuple[Any, ...], activation: str
) -> None:
    kernel, stride, padding, count_padding, divisor = options
    _launch(
        _avg_pool_gradient(), gradient, (grad_output, input), (gradient,),
        (*gradient.shape[2:], *grad_output.shape[2:]), (*stride, *padding, divisor), kernel,
        COUNT_PADDING=count_padding, ACTIVATION=activation,
    )  # fmt: skip


def _launch(
    kernel: Any,
    target: Tensor,
    sources: tuple[Tensor, ...],
    targets: tuple[Tensor, ...],
    extents: Sequence[int],
    options: Sequence[int],
    window: Sequence[int],
    **flags: bool | str,
) -> None:
    """Fill the targets, which lie alike and densely, a lane for each element.

    Args:
        kernel: of `kernels/pooling.py`.
        target: one of the targets.
        sources: what is read, by strides.
        targets: what is written.
        extents: height and width of the images, rows and columns of the windows.
        options: what the kernel takes after the strides.
        window: its kernel size.
        flags: what else the kernel is compiled for.
    """
    numel = target.numel()
    if numel == 0:
        return

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (-(-numel // meta["BLOCK"]),)

    strides = [stride for source in sources for stride in source.stride()]
    launch(
        kernel, grid, target, *sources, *targets, numel, size_class(numel), target.shape[1], *extents, *strides,
        *options, KERNEL_H=int(window[0]), KERNEL_W=int(window[1]), CHANNELS_LAST=channels_last(target),
        WIDE=wide(*sources, target), **flags,
    )  # fmt: skip


# torch looks for the kernels of an op in its source, to compile anew where they have changed. It follows functions
# that are called by name, and what they return.


def _max_pool() -> Any:
    return _autotuned(max_pool)


def _max_pool_gradient() -> Any:
    return _autotuned(max_pool_gradient)


def _avg_pool() -> Any:
    return _autotuned(avg_pool)


def _avg_pool_gradient() -> Any:
    return _autotuned(avg_pool_gradient)


@cache
def _autotuned(kernel: Any) -> Any:
    configs = [triton.Config({"BLOCK": block}, num_warps=4) for block in BLOCKS]
    return triton.autotune(
        configs=configs, key=["size_class", "KERNEL_H", "KERNEL_W", "CHANNELS_LAST"], cache_results=True
    )(kernel)


# --- their derivatives -------------------------------------------------------------------------------------------


def _of_largest(calls: Any, ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
    choices, *output = ctx.saved_tensors
    if output:
        grad_output = activation_gradient(grad_output, output[0], ctx.activation)
    gradient = calls.max_pool2d_gradient(grad_output, choices, ctx.size, ctx.innermost, *ctx.options)
    return gradient, None, None, None, None, None, None


def _of_largest_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    """What `change` (N, C, H, W) holds where the windows' largest values were: (N, C, H', W')."""
    (choices,) = ctx.saved_tensors
    kernel, stride, padding, dilation = ctx.options
    place = choices.long()
    down = torch.arange(choices.shape[2], device=change.device)[:, None] * stride[0]
    across = torch.arange(choices.shape[3], device=change.device) * stride[1]
    rows = down + place // kernel[1] * dilation[0] - padding[0]
    columns = across + place % kernel[1] * dilation[1] - padding[1]
    flat = (rows * change.shape[3] + columns).flatten(2)
    chosen = change.flatten(2).gather(2, flat).reshape(choices.shape)
    return chosen, None, None, None, None, None, None, None


def _of_mean(calls: Any, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    if ctx.activation == "none":
        gradient = calls.avg_pool2d_gradient(grad_output, ctx.size, ctx.innermost, *ctx.options)
    else:
        (input,) = ctx.saved_tensors
        gradient = calls.activation_avg_pool2d_gradient(grad_output, input, *ctx.options, ctx.activation)
    return gradient, None, None, None, None, None, None, None


def _of_activated_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    grad_output, input = ctx.saved_tensors
    slope, curvature, _ = activation_of(ctx.activation).derivatives(input)
    of_grad_output = calls.avg_pool2d(change * slope, grad_output.shape[2:], *ctx.options, "none")
    shared = calls.avg_pool2d_gradient(grad_output, input.shape[2:], channels_last(input), *ctx.options)
    return of_grad_output, change * shared * curvature, None, None, None, None, None, None


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d(change, ctx.size, *ctx.options, "none"), None, None, None, None, None, None, None


def _keep_choices(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    largest, choices = output
    ctx.mark_non_differentiable(choices)
    _keep_call(ctx, inputs)
    ctx.save_for_backward(choices, *([] if ctx.activation == "none" else [largest]))


def _keep_mean(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _keep_call(ctx, inputs)
    ctx.save_for_backward(*([] if ctx.activation == "none" else [inputs[0]]))


def _keep_call(ctx: Any, inputs: tuple[Any, ...]) -> None:
    ctx.size, ctx.innermost = inputs[0].shape[2:], channels_last(inputs[0])
    *options, ctx.activation = inputs[2:]
    ctx.options = tuple(options)


def _keep_both(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    *options, ctx.activation = inputs[2:]
    ctx.options = tuple(options)


def _keep_the_choices_given(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.options = inputs[4:]


def _keep_size_of_windows(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size = inputs[0].shape[2:]
    ctx.options = inputs[3:]


# --- registration -----------------------------------------------------------------------------------------------
# A kernel is its own fake: it allocates the outputs, and `launch` does nothing for tensors without memory.

WINDOW = "int[] kernel, int[] stride, int[] padding"
GRADIENT_SIZE = "SymInt[] size, bool channels_last"


def _register(
    schema: str, kernel: Callable[..., Any], derivative: Callable[..., Any], keep: Callable[..., Any]
) -> None:
    LIBRARY.add(schema, kernel, kernel, derivative, keep)


_register(
    f"max_pool2d(Tensor input, SymInt[] size, {WINDOW}, int[] dilation, str activation) -> (Tensor, Tensor)",
    largest,
    _of_largest,
    _keep_choices,
)
_register(
    f"max_pool2d_gradient(Tensor grad_output, Tensor choices, {GRADIENT_SIZE}, {WINDOW}, int[] dilation) "
    "-> Tensor",
    largest_gradient,
    _of_largest_gradient,
    _keep_the_choices_given,
)
_register(
    f"avg_pool2d(Tensor input, SymInt[] size, {WINDOW}, bool count_padding, int divisor, "
    "str activation) -> Tensor",
    mean,
    _of_mean,
    _keep_mean,
)
_register(
    f"avg_pool2d_gradient(Tensor grad_output, {GRADIENT_SIZE}, {WINDOW}, bool count_padding, int divisor) "
    "-> Tensor",
    mean_gradient,
    _of_mean_gradient,
    _keep_size_of_windows,
)
_register(
    f"activation_avg_pool2d_gradient(Tensor grad_output, Tensor input, {WINDOW}, bool count_padding, "
    "int divisor, str activation) -> Tensor",
    activated_mean_gradient,
    _of_activated_mean_gradient,
    _keep_both,
)
