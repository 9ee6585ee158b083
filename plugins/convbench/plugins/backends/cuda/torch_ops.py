"""The contract's ops from the kernels of convolution and pooling, registered with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.kernel_arguments import Shape
from convbench.plugins.backends.cuda.pooling import Pooling
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import ConvKernels, convolution_ops, output_size
from convbench.registry.authoring.torch_library import Library
from convbench.registry.ops.call_arguments import being_traced, pooling_options
from convbench.registry.ops.window import IntPair, mean_divisor

ACTIVATIONS = ("relu", "sigmoid", "tanh")
MOST_PIXELS = 2**16  # of a window, whose places are kept as 16 bits
WINDOW = "int[] kernel, int[] stride, int[] padding"

Ints = Sequence[int]


class Convolution(Protocol):
    """The kernels of a convolution, on contiguous tensors."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor: ...

    def input_gradient(self, grad_output: Tensor, weight: Tensor, shape: Shape) -> Tensor: ...

    def weight_gradient(
        self, grad_output: Tensor, input: Tensor, shape: Shape, with_bias: bool
    ) -> tuple[Tensor, Tensor]: ...


class FusedConvolution(Convolution, Protocol):
    """Kernels that apply an activation to the sums before they are written."""

    def activated(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, activation: str
    ) -> Tensor: ...


def operations(
    namespace: str,
    device_type: str,
    dtypes: Sequence[str],
    convolution: Convolution | FusedConvolution,
    pooling: Pooling,
) -> Mapping[str, Callable[..., Tensor]]:
    """`conv2d`, `max_pool2d` and `avg_pool2d`, and `conv2d_activation` where the kernels have activations.

    Args:
        namespace: of the registered ops, `torch.ops.NAMESPACE`; every call of this function needs its own.
        device_type: of the tensors that the kernels take.
        dtypes: which they take, by name.
        convolution: the kernels of a convolution.
        pooling: the kernels of pooling.
    """
    registered = Library(namespace, device_type)
    _register_pooling(registered, pooling)
    kinds = frozenset(getattr(torch, dtype) for dtype in dtypes)

    def refuse_others(input: Tensor) -> None:
        if input.device.type != device_type or input.dtype not in kinds:
            raise Unsupported(f"{input.dtype} on {input.device.type}")

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

    convolutions = convolution_ops(registered, _kernels(convolution), refuse_others, autocast=True)
    return {**convolutions, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}


# --- convolution ------------------------------------------------------------------------------------------------


def _kernels(convolution: Any) -> ConvKernels:
    """The kernels as the registration calls them; they get contiguous tensors and a `Shape`."""

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *options_of_shape, activation = options if len(options) == 5 else (*options, None)
        shape = _shape_of(input.shape, weight.shape, *options_of_shape)
        tensors = input.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
        output: Tensor
        if activation is None:
            output = convolution.forward(*tensors, shape)
        else:
            output = convolution.activated(*tensors, shape, activation)
        return output

    def input_gradient(grad_output: Tensor, weight: Tensor, size: Ints, _: bool, *options: Any) -> Tensor:
        shape = _shape_of(
            (grad_output.shape[0], weight.shape[1] * options[-1], *size), weight.shape, *options
        )
        gradient: Tensor = convolution.input_gradient(grad_output.contiguous(), weight.contiguous(), shape)
        return gradient

    def weight_gradient(
        grad_output: Tensor, input: Tensor, kernel_size: Ints, with_bias: bool, _: bool, *options: Any
    ) -> tuple[Tensor, Tensor]:
        weight = grad_output.shape[1], input.shape[1] // options[-1], *kernel_size
        shape = _shape_of(input.shape, weight, *options)
        gradients: tuple[Tensor, Tensor] = convolution.weight_gradient(
            grad_output.contiguous(), input.contiguous(), shape, with_bias
        )
        return gradients

    activations = ACTIVATIONS if hasattr(convolution, "activated") else ()
    return ConvKernels(forward, input_gradient, weight_gradient, activations)


def _shape_of(input: Ints, weight: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Shape:
    return _shape(tuple(input), tuple(weight), *map(tuple, (stride, padding, dilation)), groups)


@lru_cache(maxsize=1024)
def _shape(input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Shape:
    output = output_size(input[2:], weight[2:], stride, padding, dilation)
    return Shape(
        input[0], input[1], input[2:], weight[0], weight[2:], stride, padding[:2], dilation, groups, output
    )


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
        f"max_pool2d_gradient(Tensor grad_output, Tensor choices, SymInt[] size, {WINDOW}, int[] dilation) "
        "-> Tensor",
        lambda grad_output, choices, *options: pooling.largest_gradient(
            grad_output.contiguous(), choices.contiguous(), *options
        ),
        lambda grad_output, choices, *options: _fake_pool(grad_output, *options),
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
        f"avg_pool2d_gradient(Tensor grad_output, SymInt[] size, {WINDOW}, int count_padding, int divisor) "
        "-> Tensor",
        lambda grad_output, *options: pooling.mean_gradient(grad_output.contiguous(), *options),
        _fake_pool,
        _of_mean_gradient,
        _keep_size,
    )


def _keep(ctx: Any, tensors: tuple[Tensor, ...], options: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = options


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


def _of_largest(calls: Any, ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
    gradient = calls.max_pool2d_gradient(grad_output, *ctx.saved_tensors, *ctx.options)
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


def _of_mean(calls: Any, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d_gradient(grad_output, *ctx.options), None, None, None, None, None, None


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d(change, *ctx.options), None, None, None, None, None, None
