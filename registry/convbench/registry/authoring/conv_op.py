"""A differentiable `conv2d`, and one with a fused activation, from the three kernels of a convolution.

A convolution, its input gradient and its weight gradient are each linear in both of their tensors, and the
derivatives of each are the other two: gradients of gradients work to any order. The slope of an activation
follows from its output. An author writes the kernels (`ConvKernels`), and `convolution_ops` registers them with
torch, once for eager calls and once for compilers (`torch_library`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convbench.registry.authoring.conv_parts import Gradients, Needs, Pair, Parts
from convbench.registry.authoring.torch_library import Registered
from convbench.registry.errors import Unsupported
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import being_traced, convolution_options
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.window import IntPair
from convbench.registry.routing.autocast import autocasting

_OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"


@dataclass(frozen=True)
class ConvKernels:
    """What computes a convolution and its gradients, outside of autograd.

    Each kernel ends with the arguments `stride, padding, dilation, groups`: two ints, four for padding (top, left,
    bottom, right), two ints, and one. Tensors may have any strides. What a kernel returns is a new tensor.

    Attributes:
        forward: `(input, weight, bias, *options) -> output`. With `activations`, it may be called with the name of
            one as a further argument, and applies it to the output.
        input_gradient: `(grad_output, weight, size, channels_last, *options) -> (N, C, *size)`.
        weight_gradient: `(grad_output, input, kernel_size, with_bias, channels_last, *options)` ->
            `(O, C/groups, *kernel_size)` and (O,), the bias's gradient, which is read only with `with_bias`.
        activations: the names that `forward` takes; without any there is no `conv2d_activation`.
        activation_gradient: `(grad_output, output, activation) -> gradient`, contiguous; by default
            torch computes it.
        keeps_layout: the output is channels_last where the input or the weight is. The argument `channels_last` of
            the gradients then says whether the input, or the weight, is; without it, it is False.
    """

    forward: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor]
    weight_gradient: Callable[..., tuple[Tensor, Tensor]]
    activations: tuple[str, ...] = ()
    activation_gradient: Callable[[Tensor, Tensor, str], Tensor] | None = None
    keeps_layout: bool = False


class _Call(NamedTuple):
    """The parts of a context that derivatives read, for gradients outside of autograd."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: Needs
    options: tuple[Any, ...]


def convolution_ops(
    registered: Registered,
    kernels: ConvKernels,
    check: Callable[[Tensor], None],
    autocast: bool = False,
) -> dict[str, Callable[..., Tensor]]:
    """Make `conv2d` of the contract, and `conv2d_activation` where the kernels have activations.

    `conv2d` has its `Parts` as an attribute `parts`.

    Args:
        registered: the namespace for the ops, such as a `torch_library.Library`.
        kernels: what computes them.
        check: called with the input of a call; raises `Unsupported` for one that the kernels do not take.
        autocast: cast the arguments as `torch.autocast` does, also where an op is called directly.
    """
    of_convolution = _register(registered, kernels)
    eager, traced_ops = registered.eager, registered.ops

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
        traced, options = _resolved(check, input, weight, bias, stride, padding, dilation, groups)
        output: Tensor = (traced_ops if traced else eager).conv2d(input, weight, bias, *options)
        return output

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
        if name not in kernels.activations:
            raise Unsupported(f"activation {name!r}")
        traced, options = _resolved(check, input, weight, bias, stride, padding, dilation, groups)
        ops = traced_ops if traced else eager
        output: Tensor = ops.conv2d_activation(input, weight, bias, *options, name)
        return output

    def backward(
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        needs: Needs,
    ) -> Gradients:
        calls = traced_ops if torch.compiler.is_compiling() else registered.kernels
        call = _Call((input, weight), needs, (stride, padding * 2, dilation, groups))
        gradients: Gradients = of_convolution(calls, call, grad_output)[:3]
        return gradients

    found: dict[str, Callable[..., Tensor]] = {}
    for op in (conv2d, conv2d_activation) if kernels.activations else (conv2d,):
        name = op.__name__
        found[name] = wraps(op)(autocasting(OPS[name], op)) if autocast else op
    found["conv2d"].__dict__["parts"] = Parts(found["conv2d"], backward)
    return found


def _resolved(
    check: Callable[[Tensor], None], input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[bool, Any]:
    """Whether a compiler traces the call, and its options as plain numbers, after all checks."""
    check(input)
    traced = being_traced(input)
    if not traced:
        device = input.device
        if weight.device != device:
            raise ValueError(f"input is on {device}, but weight on {weight.device}")
        if bias is not None and bias.device != device:
            raise ValueError(f"input is on {device}, but bias on {bias.device}")
    return traced, convolution_options(traced, input, weight, bias, *options)


def output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """(H', W') of a convolution of (H, W); padding is top, left, bottom, right."""
    pads = padding[0] + padding[2], padding[1] + padding[3]
    axes = zip(size, pads, dilation, kernel_size, stride, strict=True)
    rows, columns = ((extent + pad - gap * (k - 1) - 1) // step + 1 for extent, pad, gap, k, step in axes)
    return rows, columns


def channels_last(images: Tensor) -> bool:
    """Whether (N, C, H, W) is stored as N, H, W, C, densely."""
    return bool(images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last))


def new_images(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """An empty dense (N, C, H, W), channels_last or contiguous, with the dtype and device of `like`."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=memory_format)


def slope_and_curvature(output: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """f'(x) from f(x), and its derivative by f(x); the slope of a ReLU is 1 at NaN, as torch has it."""
    if activation == "relu":
        return (~(output <= 0)).to(output.dtype), torch.zeros_like(output)
    if activation == "sigmoid":
        return output * (1 - output), 1 - 2 * output
    return 1 - output.square(), -2 * output


def activation_gradient(grad_output: Tensor, output: Tensor, activation: str) -> Tensor:
    """The gradient of an activation's argument, from those of its output; rounded once in half precision."""
    if activation == "relu":
        return grad_output.where(~(output <= 0), 0)
    dtype = torch.float32 if output.dtype.itemsize < 4 else output.dtype
    slope, _ = slope_and_curvature(output.to(dtype), activation)
    return (grad_output.to(dtype) * slope).to(output.dtype)


# --- registration -----------------------------------------------------------------------------------------------
# Each derivative takes the functions to call: eager ops, those of compilers, or the kernels alone.


def _register(registered: Registered, kernels: ConvKernels) -> Callable[..., Any]:
    """Register the ops, and return the derivative of the convolution."""
    layout, own_slope = kernels.keeps_layout, kernels.activation_gradient is not None

    def of_convolution(calls: Any, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, weight, *output = ctx.saved_tensors
        if output:
            slope = calls.activation_gradient if own_slope else activation_gradient
            grad_output = slope(grad_output, output[0], ctx.activation)
        needs = ctx.needs_input_grad
        of_input = of_weight = of_bias = None
        if needs[0]:
            last = layout and channels_last(input)
            of_input = calls.conv2d_input_gradient(grad_output, weight, input.shape[2:], last, *ctx.options)
        if needs[1] or needs[2]:
            last = layout and channels_last(weight)
            of_weight, of_bias = calls.conv2d_weight_gradient(
                grad_output, input, weight.shape[2:], needs[2], last, *ctx.options
            )
        gradients = of_input, of_weight if needs[1] else None, of_bias if needs[2] else None
        return *gradients, *[None] * (5 if output else 4)

    def of_input_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
        grad_output, weight = ctx.saved_tensors
        of_grad_output = of_weight = None
        if ctx.needs_input_grad[0]:
            of_grad_output = calls.conv2d(change, weight, None, *ctx.options)
        if ctx.needs_input_grad[1]:
            last = layout and channels_last(weight)
            of_weight, _ = calls.conv2d_weight_gradient(
                grad_output, change, weight.shape[2:], False, last, *ctx.options
            )
        return of_grad_output, of_weight, None, None, None, None, None, None

    def of_weight_gradient(calls: Any, ctx: Any, change: Tensor, change_of_bias: Tensor) -> tuple[Any, ...]:
        grad_output, input = ctx.saved_tensors
        of_grad_output = of_input = None
        if ctx.needs_input_grad[0]:
            of_grad_output = calls.conv2d(input, change, change_of_bias, *ctx.options)
        if ctx.needs_input_grad[1]:
            last = layout and channels_last(input)
            of_input = calls.conv2d_input_gradient(grad_output, change, input.shape[2:], last, *ctx.options)
        return of_grad_output, of_input, None, None, None, None, None, None, None

    def fake_convolution(input: Tensor, weight: Tensor, bias: Any, *options: Any) -> Tensor:
        size = output_size(input.shape[2:], weight.shape[2:], *options[:3])
        last = layout and (channels_last(input) or channels_last(weight))
        return new_images(input, (input.shape[0], weight.shape[0], *size), last)

    def fake_input_gradient(
        grad_output: Tensor, weight: Tensor, size: Sequence[int], last: bool, *options: Any
    ) -> Tensor:
        shape = grad_output.shape[0], weight.shape[1] * options[-1], *size
        return new_images(grad_output, shape, last)

    def fake_weight_gradient(
        grad_output: Tensor, input: Tensor, size: Sequence[int], with_bias: bool, last: bool, *options: Any
    ) -> tuple[Tensor, Tensor]:
        shape = grad_output.shape[1], input.shape[1] // options[-1], *size
        return new_images(grad_output, shape, last), grad_output.new_empty(shape[:1])

    def keep_options_from(first: int) -> Callable[[Any, tuple[Any, ...], Any], None]:
        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(inputs[0], inputs[1])
            ctx.options = inputs[first:]

        return keep

    def keep_output(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)
        ctx.options, ctx.activation = inputs[3:-1], inputs[-1]

    registered.add(
        f"conv2d(Tensor input, Tensor weight, Tensor? bias, {_OPTIONS}) -> Tensor",
        kernels.forward,
        fake_convolution,
        of_convolution,
        keep_options_from(3),
    )
    registered.add(
        "conv2d_input_gradient(Tensor grad_output, Tensor weight, SymInt[] size, bool channels_last, "
        f"{_OPTIONS}) -> Tensor",
        kernels.input_gradient,
        fake_input_gradient,
        of_input_gradient,
        keep_options_from(4),
    )
    registered.add(
        "conv2d_weight_gradient(Tensor grad_output, Tensor input, SymInt[] kernel_size, bool with_bias, "
        f"bool channels_last, {_OPTIONS}) -> (Tensor, Tensor)",
        kernels.weight_gradient,
        fake_weight_gradient,
        of_weight_gradient,
        keep_options_from(5),
    )
    if kernels.activations:
        registered.add(
            f"conv2d_activation(Tensor input, Tensor weight, Tensor? bias, {_OPTIONS}, str activation) -> Tensor",
            kernels.forward,
            lambda input, weight, bias, *options: fake_convolution(input, weight, bias, *options[:-1]),
            of_convolution,
            keep_output,
        )
    if kernels.activation_gradient is not None:
        registered.add(
            "activation_gradient(Tensor grad_output, Tensor output, str activation) -> Tensor",
            kernels.activation_gradient,
            lambda grad_output, *_: torch.empty_like(grad_output, memory_format=torch.contiguous_format),
            _derivative_of_activation_gradient,
            _keep_activation,
        )
    return of_convolution


def _derivative_of_activation_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    grad_output, output = ctx.saved_tensors
    _, curvature = slope_and_curvature(output, ctx.activation)
    of_output = change * grad_output * curvature
    return calls.activation_gradient(change, output, ctx.activation), of_output, None


def _keep_activation(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.activation = inputs[2]
