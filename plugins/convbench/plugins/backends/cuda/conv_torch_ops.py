"""A convolution and its gradients as ops of torch, with and without an activation on what comes out.

A convolution, its input gradient and its weight gradient are linear in both of their tensors, and the derivatives
of each are the other two: gradients of gradients work to any order. The slope of an activation is known from what
came out of it, and torch multiplies by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.kernel_arguments import Shape
from convbench.registry.authoring.torch_library import Library

OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"  # padding: top, left, bottom, right

Ints = Sequence[int]


class Convolving(Protocol):
    """The kernels of a convolution, on contiguous tensors; as `convolution.Convolution` has them."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor: ...

    def input_gradient(self, upstream: Tensor, weight: Tensor, shape: Shape) -> Tensor: ...

    def weight_gradient(
        self, upstream: Tensor, input: Tensor, shape: Shape, with_bias: bool
    ) -> tuple[Tensor, Tensor]: ...


class Activating(Protocol):
    """Kernels that apply an activation to the sums before they are written."""

    def activated(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, activation: str
    ) -> Tensor: ...


def keep(ctx: Any, tensors: tuple[Tensor, ...], options: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = options


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


def _shape_of(input: Ints, weight: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Shape:
    pads: Any = tuple(padding)
    steps, gaps = (stride[0], stride[1]), (dilation[0], dilation[1])
    return _shape(tuple(input), tuple(weight), steps, pads, gaps, groups)


def register_convolution(registered: Library, convolving: Convolving) -> None:
    def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        shape = _shape_of(input.shape, weight.shape, *options)
        bias = None if bias is None else bias.contiguous()
        return convolving.forward(input.contiguous(), weight.contiguous(), bias, shape)

    def input_gradient(upstream: Tensor, weight: Tensor, size: Ints, *options: Any) -> Tensor:
        shape = _shape_of((upstream.shape[0], weight.shape[1] * options[-1], *size), weight.shape, *options)
        return convolving.input_gradient(upstream.contiguous(), weight.contiguous(), shape)

    def weight_gradient(
        upstream: Tensor, input: Tensor, kernel_size: Ints, with_bias: bool, *options: Any
    ) -> tuple[Tensor, Tensor]:
        kernels = (upstream.shape[1], input.shape[1] // options[-1], *kernel_size)
        shape = _shape_of(input.shape, kernels, *options)
        return convolving.weight_gradient(upstream.contiguous(), input.contiguous(), shape, with_bias)

    registered.add(
        f"conv2d(Tensor input, Tensor weight, Tensor? bias, {OPTIONS}) -> Tensor",
        convolution,
        _fake_convolution,
        _of_convolution,
        lambda ctx, inputs, _: keep(ctx, inputs[:2], inputs[3:]),
    )
    registered.add(
        f"conv2d_input_gradient(Tensor upstream, Tensor weight, SymInt[] size, {OPTIONS}) -> Tensor",
        input_gradient,
        _fake_input_gradient,
        _of_input_gradient,
        lambda ctx, inputs, _: keep(ctx, inputs[:2], inputs[3:]),
    )
    registered.add(
        "conv2d_weight_gradient(Tensor upstream, Tensor input, SymInt[] kernel_size, bool with_bias, "
        f"{OPTIONS}) -> (Tensor, Tensor)",
        weight_gradient,
        _fake_weight_gradient,
        _of_weight_gradient,
        lambda ctx, inputs, _: keep(ctx, inputs[:2], inputs[4:]),
    )


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
    return *_gradients(calls, ctx, upstream, *ctx.saved_tensors), None, None, None, None


def _gradients(calls: Any, ctx: Any, upstream: Tensor, input: Tensor, weight: Tensor) -> tuple[Any, ...]:
    """Of input, weight and bias, where they are asked for."""
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = calls.conv2d_input_gradient(upstream, weight, input.shape[2:], *ctx.options)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        of_weight, of_bias = calls.conv2d_weight_gradient(
            upstream, input, weight.shape[2:], ctx.needs_input_grad[2], *ctx.options
        )
    return of_input, of_weight, of_bias if ctx.needs_input_grad[2] else None


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


# --- with an activation -----------------------------------------------------------------------------------------


def _of_relu(output: Tensor) -> Tensor:
    return (~(output <= 0)).to(output.dtype)  # as torch has it: 0 at 0, and 1 where there is no number


def _of_sigmoid(output: Tensor) -> Tensor:
    return output * (1 - output)


def _of_tanh(output: Tensor) -> Tensor:
    return 1 - output.square()


SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": _of_relu,
    "sigmoid": _of_sigmoid,
    "tanh": _of_tanh,
}


def register_activated(registered: Library, activating: Activating) -> None:
    def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        shape = _shape_of(input.shape, weight.shape, *options[:-1])
        bias = None if bias is None else bias.contiguous()
        return activating.activated(input.contiguous(), weight.contiguous(), bias, shape, options[-1])

    registered.add(
        f"conv2d_activation(Tensor input, Tensor weight, Tensor? bias, {OPTIONS}, str activation) -> Tensor",
        kernel,
        _fake_convolution,
        _of_activated,
        _keep_output,
    )


def _keep_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep(ctx, (*inputs[:2], output), inputs[3:-1])
    ctx.activation = inputs[-1]


def _of_activated(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    input, weight, output = ctx.saved_tensors
    exact = torch.float32 if output.dtype.itemsize < 4 else output.dtype  # rounded once, not at every step
    of_sums = (upstream.to(exact) * SLOPES[ctx.activation](output.to(exact))).to(output.dtype)
    return *_gradients(calls, ctx, of_sums, input, weight), None, None, None, None, None
