"""The contract's ops from the kernels of a convolution and of pooling: arguments checked, gradients, registration.

A convolution, its input gradient and its weight gradient are linear in both of their tensors, and the derivatives
of each are the other two: gradients of gradients work to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.correlation import Shape
from convbench.plugins.backends.cuda.pooling import Pooling
from convbench.plugins.backends.cuda.registration import Registered
from convbench.registry import Unsupported
from convbench.registry.geometry import IntPair, conv2d_window, pool2d_window

MOST_PIXELS = 2**16  # of a window, whose places are kept as 16 bits
OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"  # padding: top, left, bottom, right
WINDOW = "int[] kernel, int[] stride, int[] padding"

Ints = Sequence[int]


class Convolving(Protocol):
    """The kernels of a convolution, on contiguous tensors; as `convolution.Convolution` has them."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor: ...

    def input_gradient(self, upstream: Tensor, weight: Tensor, shape: Shape) -> Tensor: ...

    def weight_gradient(
        self, upstream: Tensor, input: Tensor, shape: Shape, with_bias: bool
    ) -> tuple[Tensor, Tensor]: ...


def operations(
    namespace: str, device_type: str, dtypes: Sequence[str], convolving: Convolving, pooling: Pooling
) -> Mapping[str, Callable[..., Tensor]]:
    """`conv2d`, `max_pool2d` and `avg_pool2d`, their parts registered as `torch.ops.NAMESPACE`.

    Args:
        namespace: of the registered ops; every call of this function needs one of its own.
        device_type: of the tensors that the kernels take.
        dtypes: which they take, by name.
        convolving: the kernels of a convolution.
        pooling: the kernels of pooling.
    """
    registered = Registered(namespace, device_type)
    _register_convolution(registered, convolving)
    _register_pooling(registered, pooling)
    kinds = frozenset(getattr(torch, dtype) for dtype in dtypes)

    def refuse_others(input: Tensor) -> None:
        if input.device.type != device_type or input.dtype not in kinds:
            raise Unsupported(f"{input.dtype} on {input.device.type}")

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
        if torch.is_autocast_enabled(device_type):
            input, weight, bias = _autocast(device_type, input, weight, bias)
        refuse_others(input)
        if torch.compiler.is_compiling() or type(input) is not Tensor:
            window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
            pad = (*window.before, *window.after)
            traced: Tensor = registered.ops.conv2d(
                input, weight, bias, window.stride, pad, window.dilation, groups
            )
            return traced
        for tensor in (weight, bias):
            if tensor is not None and tensor.device != input.device:
                raise ValueError(f"input is on {input.device}, but weight or bias on {tensor.device}")
        of_bias = None if bias is None else (bias.shape, bias.dtype)
        arguments: Any = (input.shape, input.dtype, weight.shape, weight.dtype, of_bias)
        options = _looked_up(_checked_convolution, *arguments, stride, padding, dilation, groups)
        convolved: Tensor = registered.eager.conv2d(input, weight, bias, *options)
        return convolved

    def max_pool2d(
        input: Tensor,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        ceil_mode: bool = False,
    ) -> Tensor:
        """The largest value in each window: (N, C, H, W) -> (N, C, H', W')."""
        refuse_others(input)
        traced = torch.compiler.is_compiling() or type(input) is not Tensor
        options = _window(traced, input, kernel_size, stride, padding, dilation, ceil_mode)
        if options[1][0] * options[1][1] > MOST_PIXELS:
            raise Unsupported(f"windows of more than {MOST_PIXELS} pixels")
        largest: Tensor
        largest, _ = (registered.ops if traced else registered.eager).max_pool2d(input, *options)
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
        if divisor_override == 0:
            raise ValueError("divisor_override must not be zero")
        refuse_others(input)
        traced = torch.compiler.is_compiling() or type(input) is not Tensor
        size, kernel, steps, pad, _ = _window(traced, input, kernel_size, stride, padding, 1, ceil_mode)
        options = size, kernel, steps, pad, int(count_include_pad), divisor_override or 0
        mean: Tensor = (registered.ops if traced else registered.eager).avg_pool2d(input, *options)
        return mean

    return {"conv2d": conv2d, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}


def _autocast(
    device_type: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the dtype that torch's own convolutions take under autocast."""
    dtype = torch.get_autocast_dtype(device_type)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _looked_up(cached: Any, *arguments: Any) -> Any:
    try:
        return cached(*arguments)
    except TypeError:  # a list, which cannot be looked up
        return cached.__wrapped__(*arguments)


# --- convolution ------------------------------------------------------------------------------------------------

Options = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


@lru_cache(maxsize=1024, typed=True)
def _checked_convolution(
    size: torch.Size, dtype: torch.dtype, kernels: torch.Size, of: torch.dtype, of_bias: Any, *options: Any
) -> Options:
    """The options as numbers, looked at as torch does, once for all calls of the same shapes."""
    input = torch.empty(size, dtype=dtype, device="meta")
    weight = torch.empty(kernels, dtype=of, device="meta")
    bias = None if of_bias is None else torch.empty(of_bias[0], dtype=of_bias[1], device="meta")
    window = conv2d_window(input, weight, bias, *options)
    return window.stride, (*window.before, *window.after), window.dilation, options[-1]


def _output_size(size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    pads = padding[0] + padding[2], padding[1] + padding[3]
    axes = zip(size, pads, dilation, kernel, stride, strict=True)
    height, width = (
        (extent + pad - gap * (taps - 1) - 1) // step + 1 for extent, pad, gap, taps, step in axes
    )
    return height, width


@lru_cache(maxsize=1024)
def _shape(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Shape:
    size, kernel = (input[2], input[3]), (weight[2], weight[3])
    output = _output_size(size, kernel, stride, padding, dilation)
    before = padding[0], padding[1]
    return Shape(input[0], input[1], size, weight[0], kernel, stride, before, dilation, groups, output)


def _register_convolution(registered: Registered, convolving: Convolving) -> None:
    def shape_of(
        input: Ints, weight: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
    ) -> Shape:
        pads: Any = tuple(padding)
        return _shape(
            tuple(input), tuple(weight), (stride[0], stride[1]), pads, (dilation[0], dilation[1]), groups
        )

    def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        shape = shape_of(input.shape, weight.shape, *options)
        bias = None if bias is None else bias.contiguous()
        return convolving.forward(input.contiguous(), weight.contiguous(), bias, shape)

    def input_gradient(upstream: Tensor, weight: Tensor, size: Ints, *options: Any) -> Tensor:
        shape = shape_of((upstream.shape[0], weight.shape[1] * options[-1], *size), weight.shape, *options)
        return convolving.input_gradient(upstream.contiguous(), weight.contiguous(), shape)

    def weight_gradient(
        upstream: Tensor, input: Tensor, kernel_size: Ints, with_bias: bool, *options: Any
    ) -> tuple[Tensor, Tensor]:
        kernels = (upstream.shape[1], input.shape[1] // options[-1], *kernel_size)
        shape = shape_of(input.shape, kernels, *options)
        return convolving.weight_gradient(upstream.contiguous(), input.contiguous(), shape, with_bias)

    registered.add(
        f"conv2d(Tensor input, Tensor weight, Tensor? bias, {OPTIONS}) -> Tensor",
        convolution,
        _fake_convolution,
        _of_convolution,
        lambda ctx, inputs, _: _keep(ctx, inputs[:2], inputs[3:]),
    )
    registered.add(
        f"conv2d_input_gradient(Tensor upstream, Tensor weight, SymInt[] size, {OPTIONS}) -> Tensor",
        input_gradient,
        _fake_input_gradient,
        _of_input_gradient,
        lambda ctx, inputs, _: _keep(ctx, inputs[:2], inputs[3:]),
    )
    registered.add(
        "conv2d_weight_gradient(Tensor upstream, Tensor input, SymInt[] kernel_size, bool with_bias, "
        f"{OPTIONS}) -> (Tensor, Tensor)",
        weight_gradient,
        _fake_weight_gradient,
        _of_weight_gradient,
        lambda ctx, inputs, _: _keep(ctx, inputs[:2], inputs[4:]),
    )


def _keep(ctx: Any, tensors: tuple[Tensor, ...], options: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = options


def _fake_convolution(input: Tensor, weight: Tensor, bias: Any, *options: Any) -> Tensor:
    size = _output_size(input.shape[2:], weight.shape[2:], *options[:3])
    return input.new_empty((input.shape[0], weight.shape[0], *size))


def _fake_input_gradient(upstream: Tensor, weight: Tensor, size: Ints, *options: Any) -> Tensor:
    return upstream.new_empty((upstream.shape[0], weight.shape[1] * options[-1], *size))


def _fake_weight_gradient(
    upstream: Tensor, input: Tensor, kernel_size: Ints, with_bias: bool, *options: Any
) -> tuple[Tensor, Tensor]:
    shape = (upstream.shape[1], input.shape[1] // options[-1], *kernel_size)
    return upstream.new_empty(shape), upstream.new_empty(shape[:1] if with_bias else (0,))


def _of_convolution(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = calls.conv2d_input_gradient(upstream, weight, input.shape[2:], *ctx.options)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        of_weight, of_bias = calls.conv2d_weight_gradient(
            upstream, input, weight.shape[2:], ctx.needs_input_grad[2], *ctx.options
        )
    return of_input, of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None, None, None


def _of_input_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    upstream, weight = ctx.saved_tensors
    of_upstream = of_weight = None
    if ctx.needs_input_grad[0]:
        of_upstream = calls.conv2d(change, weight, None, *ctx.options)
    if ctx.needs_input_grad[1]:
        of_weight, _ = calls.conv2d_weight_gradient(upstream, change, weight.shape[2:], False, *ctx.options)
    return of_upstream, of_weight, None, None, None, None, None


def _of_weight_gradient(calls: Any, ctx: Any, change: Tensor, change_of_bias: Tensor) -> tuple[Any, ...]:
    upstream, input = ctx.saved_tensors
    of_upstream = of_input = None
    if ctx.needs_input_grad[0]:
        bias = change_of_bias if len(change_of_bias) else None  # where none was asked for, there is none
        of_upstream = calls.conv2d(input, change, bias, *ctx.options)
    if ctx.needs_input_grad[1]:
        of_input = calls.conv2d_input_gradient(upstream, change, input.shape[2:], *ctx.options)
    return of_upstream, of_input, None, None, None, None, None, None


# --- pooling ----------------------------------------------------------------------------------------------------

Pair = tuple[int, int]
Pairs = tuple[Pair, Pair, Pair, Pair, Pair]


def _window(traced: bool, input: Tensor, *options: Any) -> Pairs:
    """Output size, kernel size, stride, padding and dilation."""
    if traced:
        return _resolved(input, *options)
    checked: Pairs = _looked_up(_checked_window, input.shape, *options)
    return checked


@lru_cache(maxsize=1024, typed=True)
def _checked_window(size: torch.Size, *options: Any) -> Pairs:
    """The options as torch would take them, looked at once for all calls of the same shapes."""
    return _resolved(torch.empty(size, device="meta"), *options)


def _resolved(input: Tensor, *options: Any) -> Pairs:
    window = pool2d_window(input, *options)
    return window.output_size, window.kernel_size, window.stride, window.before, window.dilation


def _register_pooling(registered: Registered, pooling: Pooling) -> None:
    registered.add(
        f"max_pool2d(Tensor input, SymInt[] size, {WINDOW}, int[] dilation) -> (Tensor, Tensor)",
        lambda input, *options: pooling.largest(input.contiguous(), *options),
        _fake_largest,
        _of_largest,
        _keep_choices,
    )
    registered.add(
        f"max_pool2d_gradient(Tensor upstream, Tensor choices, SymInt[] size, {WINDOW}, int[] dilation) -> Tensor",
        lambda upstream, choices, *options: pooling.largest_gradient(
            upstream.contiguous(), choices.contiguous(), *options
        ),
        lambda upstream, choices, *options: _fake_pool(upstream, *options),
        _of_largest_gradient,
        lambda ctx, inputs, _: _keep(ctx, inputs[1:2], inputs[3:]),
    )
    registered.add(
        f"avg_pool2d(Tensor input, SymInt[] size, {WINDOW}, int count_padding, int divisor) -> Tensor",
        lambda input, *options: pooling.mean(input.contiguous(), *options),
        _fake_pool,
        _of_mean,
        _keep_size,
    )
    registered.add(
        f"avg_pool2d_gradient(Tensor upstream, SymInt[] size, {WINDOW}, int count_padding, int divisor) -> Tensor",
        lambda upstream, *options: pooling.mean_gradient(upstream.contiguous(), *options),
        _fake_pool,
        _of_mean_gradient,
        _keep_size,
    )


def _fake_pool(input: Tensor, size: Ints, *_: Any) -> Tensor:
    return input.new_empty((*input.shape[:2], *size))


def _fake_largest(input: Tensor, size: Ints, *_: Any) -> tuple[Tensor, Tensor]:
    output = _fake_pool(input, size)
    return output, torch.empty_like(output, dtype=torch.int16)


def _keep_choices(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, (output[1],), (inputs[0].shape[2:], *inputs[2:]))


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The size that a mean comes from is the one that its gradient goes to, and the other way round."""
    ctx.options = inputs[0].shape[2:], *inputs[2:]


def _of_largest(calls: Any, ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    gradient = calls.max_pool2d_gradient(upstream, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None, None, None


def _of_largest_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    """What `change` (N, C, H, W) holds where the windows' largest values were: (N, C, H', W')."""
    (choices,) = ctx.saved_tensors
    kernel, stride, padding, dilation = ctx.options
    place = choices.long() & 0xFFFF
    i, j = (torch.arange(extent, device=change.device) for extent in choices.shape[2:])
    rows = i[:, None] * stride[0] + place // kernel[1] * dilation[0] - padding[0]
    columns = j * stride[1] + place % kernel[1] * dilation[1] - padding[1]
    flat = (rows * change.shape[3] + columns).flatten(2)
    chosen = change.flatten(2).gather(2, flat).reshape(choices.shape)
    return chosen, None, None, None, None, None, None


def _of_mean(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d_gradient(upstream, *ctx.options), None, None, None, None, None, None


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d(change, *ctx.options), None, None, None, None, None, None
