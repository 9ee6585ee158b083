"""The contract's ops from the kernels of convolution and pooling: arguments are checked, torch's ops called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.conv_torch_ops import (
    SLOPES,
    Activating,
    Convolving,
    Ints,
    keep,
    register_activated,
    register_convolution,
)
from convbench.plugins.backends.cuda.pooling import Pooling
from convbench.registry import Unsupported
from convbench.registry.authoring.torch_library import Library
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import being_traced, convolution_options, pooling_options
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.window import IntPair, mean_divisor
from convbench.registry.routing.autocast import autocasting

MOST_PIXELS = 2**16  # of a window, whose places are kept as 16 bits
WINDOW = "int[] kernel, int[] stride, int[] padding"


def operations(
    namespace: str,
    device_type: str,
    dtypes: Sequence[str],
    convolving: Convolving,
    pooling: Pooling,
    activating: Activating | None = None,
) -> Mapping[str, Callable[..., Tensor]]:
    """`conv2d`, `max_pool2d` and `avg_pool2d`, their parts registered as `torch.ops.NAMESPACE`.

    Args:
        namespace: of the registered ops; every call of this function needs one of its own.
        device_type: of the tensors that the kernels take.
        dtypes: which they take, by name.
        convolving: the kernels of a convolution.
        pooling: the kernels of pooling.
        activating: those of a convolution with an activation; with them there is `conv2d_activation` too.
    """
    registered = Library(namespace, device_type)
    register_convolution(registered, convolving)
    _register_pooling(registered, pooling)
    if activating is not None:
        register_activated(registered, activating)
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
        return convolved("conv2d", (), input, weight, bias, stride, padding, dilation, groups)

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
        name = activation_of(activation).name
        if name not in SLOPES:
            raise Unsupported(f"activation {name!r}")
        return convolved("conv2d_activation", (name,), input, weight, bias, stride, padding, dilation, groups)

    def convolved(
        op: str,
        further: tuple[str, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: IntPair,
        padding: IntPair | str,
        dilation: IntPair,
        groups: int,
    ) -> Tensor:
        refuse_others(input)
        traced = being_traced(input)
        for tensor in () if traced else (weight, bias):
            if tensor is not None and tensor.device != input.device:
                raise ValueError(f"input is on {input.device}, but weight or bias on {tensor.device}")
        options = convolution_options(traced, input, weight, bias, stride, padding, dilation, groups)
        library = registered.ops if traced else registered.eager
        output: Tensor = getattr(library, op)(input, weight, bias, *options, *further)
        return output

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
        traced = being_traced(input)
        options = pooling_options(traced, input, kernel_size, stride, padding, dilation, ceil_mode)
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
        divisor_override = mean_divisor(divisor_override)
        refuse_others(input)
        traced = being_traced(input)
        size, kernel, steps, pad, _ = pooling_options(
            traced, input, kernel_size, stride, padding, 1, ceil_mode
        )
        options = size, kernel, steps, pad, int(count_include_pad), divisor_override or 0
        mean: Tensor = (registered.ops if traced else registered.eager).avg_pool2d(input, *options)
        return mean

    found: dict[str, Callable[..., Tensor]] = {"max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}
    for op in (conv2d,) if activating is None else (conv2d, conv2d_activation):
        found[op.__name__] = autocasting(OPS[op.__name__], op)
    return found


# --- pooling ----------------------------------------------------------------------------------------------------


def _register_pooling(registered: Library, pooling: Pooling) -> None:
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
        lambda ctx, inputs, _: keep(ctx, inputs[1:2], inputs[3:]),
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
    keep(ctx, (output[1],), (inputs[0].shape[2:], *inputs[2:]))


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
