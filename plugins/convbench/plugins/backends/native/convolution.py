"""`conv2d` and its gradients as ops of torch (`torch_ops.py`).

All three functions are linear in both of their tensors, and the derivatives of each are the other two: gradients
of gradients work to any order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.native.library import NO_MEMORY, TOO_MUCH, function
from convbench.plugins.backends.native.torch_ops import EAGER, KERNELS, OPS, register
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_parts import Gradients, Needs, Parts
from convbench.registry.ops.call_arguments import ConvolutionOptions, being_traced, convolution_options
from convbench.registry.ops.window import IntPair

DTYPES = (torch.float32, torch.float64)
OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"  # padding: top, left, bottom, right


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
    traced = being_traced(input)
    options = checked(traced, input, weight, bias, stride, padding, dilation, groups)
    convolved: Tensor = (OPS if traced else EAGER).conv2d(input, weight, bias, *options)
    return convolved


def checked(
    traced: bool, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> ConvolutionOptions:
    """The options of a call as numbers, once it is seen to be one that torch takes, and that is served here."""
    refuse_others(input)
    if traced:
        return convolution_options(traced, input, weight, bias, *options)
    if not (weight.is_cpu and (bias is None or bias.is_cpu)):
        raise ValueError(f"input is on the cpu, but weight on {weight.device.type}")
    resolved = convolution_options(traced, input, weight, bias, *options)
    if not _is_served(input.shape, weight.shape, *resolved, input.dtype, torch.get_num_threads()):
        raise Unsupported(f"sizes whose copies take far more memory than the tensors: {resolved}")
    return resolved


def refuse_others(input: Tensor) -> None:
    """Raise Unsupported for a tensor that the kernels cannot read."""
    if not input.is_cpu or input.dtype not in DTYPES:
        raise Unsupported(f"{input.dtype} on {input.device.type}")
    if input.layout is not torch.strided:
        raise Unsupported(f"a tensor whose layout is {input.layout}")


# --- the kernels ------------------------------------------------------------------------------------------------


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: int = 0,
) -> Tensor:
    """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    options = tuple(stride), tuple(padding), tuple(dilation), groups, activation
    geometry, size = _geometry(input.shape, weight.shape, *options)
    output = input.new_empty(size)
    call("conv2d", geometry, input, weight, bias, output)
    return output


def input_gradient(
    upstream: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """(N, O, H', W'), (O, C/groups, kh, kw), (H, W) -> (N, C, H, W)."""
    shape = torch.Size((len(upstream), weight.shape[1] * groups, *size))
    geometry, _ = _geometry(shape, weight.shape, *map(tuple, (stride, padding, dilation)), groups)
    gradient = upstream.new_empty(shape)
    call("conv2d_input_gradient", geometry, upstream, weight, gradient)
    return gradient


def weight_gradient(
    upstream: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """(N, O, H', W'), (N, C, H, W), (kh, kw) -> (O, C/groups, kh, kw) of the weight and (O,) of the bias."""
    shape = torch.Size((upstream.shape[1], input.shape[1] // groups, *kernel_size))
    geometry, _ = _geometry(input.shape, shape, *map(tuple, (stride, padding, dilation)), groups)
    gradient, of_bias = upstream.new_empty(shape), upstream.new_empty(shape[:1])
    call("conv2d_weight_gradient", geometry, upstream, input, gradient, of_bias)
    return gradient, of_bias


@lru_cache(maxsize=1024)
def _is_served(
    input: torch.Size,
    weight: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    threads: int,
) -> bool:
    """Whether the copies that a convolution and its gradients make are of the order of their tensors."""
    geometry, _ = _geometry(input, weight, stride, padding, dilation, groups)
    return not function("conv2d_served", dtype)(geometry, threads)


@lru_cache(maxsize=1024)
def _geometry(
    input: torch.Size,
    weight: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    activation: int = 0,
) -> tuple[Any, tuple[int, ...]]:
    """`Geometry` of core.hpp, and the output's shape.

    Raises:
        ValueError: a weight of other channels, or numbers that 64 bits do not hold.
    """
    if groups < 1 or weight[1] * groups != input[1]:
        raise ValueError(
            f"weight {tuple(weight)} with groups={groups} does not fit an input of {tuple(input)}"
        )
    size = _output_size(input[2:], weight[2:], stride, padding, dilation)
    filters, _, kh, kw = weight
    numbers = (*input, filters, kh, kw, *stride, *padding[:2], *dilation, groups, *size, activation)
    return int64s(numbers), (input[0], filters, *size)


def int64s(numbers: Sequence[int]) -> Any:
    """Numbers as C takes them; ctypes would cut off what does not fit.

    Raises:
        ValueError: one of them does not fit.
    """
    if not all(-(2**63) <= number < 2**63 for number in numbers):
        raise ValueError(f"native: {max(numbers, key=abs)} does not fit into 64 bits")
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    pads = padding[0] + padding[2], padding[1] + padding[3]
    axes = zip(size, pads, dilation, kernel, stride, strict=True)
    return [(extent + pad - gap * (taps - 1) - 1) // step + 1 for extent, pad, gap, taps, step in axes]


def call(name: str, sizes: Any, *tensors: Tensor | None) -> None:
    """Call a function with the addresses of contiguous tensors; those it writes are new, and so contiguous.

    Args:
        name: of the function; its dtype is that of the first tensor.
        sizes: `Geometry`, `Pooling` or `Elements` of core.hpp.
        tensors: those that it reads, which are copied where they are not contiguous, and those that it writes.

    Raises:
        MemoryError: there is none for the copies that the kernel makes.
        ValueError: sizes that are none, or a tensor that has lost its memory.
    """
    kept = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in kept]
    first = tensors[0]
    assert first is not None
    status = function(name, first.dtype)(sizes, *addresses, torch.get_num_threads())
    if status in (NO_MEMORY, TOO_MUCH):
        raise MemoryError(f"native: no memory for the copies that {name} makes")
    if status:
        raise ValueError(
            f"native: {name} of {list(sizes)}: not sizes of such a call, or a tensor without memory"
        )


# --- their derivatives ------------------------------------------------------------------------------------------
# Each takes the functions to call, for eager ops and those of compilers are different ones.


def _of_convolution(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = calls.conv2d_input_gradient(upstream, weight, input.shape[2:], *ctx.options)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        of_weight, of_bias = calls.conv2d_weight_gradient(upstream, input, weight.shape[2:], *ctx.options)
    return of_input, of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None, None, None


def _of_input_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    upstream, weight = ctx.saved_tensors
    of_upstream = of_weight = None
    if ctx.needs_input_grad[0]:
        of_upstream = calls.conv2d(change, weight, None, *ctx.options)
    if ctx.needs_input_grad[1]:
        of_weight, _ = calls.conv2d_weight_gradient(upstream, change, weight.shape[2:], *ctx.options)
    return of_upstream, of_weight, None, None, None, None, None


def _of_weight_gradient(calls: Any, ctx: Any, change: Tensor, change_of_bias: Tensor) -> tuple[Any, ...]:
    upstream, input = ctx.saved_tensors
    of_upstream = of_input = None
    if ctx.needs_input_grad[0]:
        of_upstream = calls.conv2d(input, change, change_of_bias, *ctx.options)
    if ctx.needs_input_grad[1]:
        of_input = calls.conv2d_input_gradient(upstream, change, input.shape[2:], *ctx.options)
    return of_upstream, of_input, None, None, None, None, None


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options = inputs[3:]


# --- both gradients, for whoever takes the convolution apart -----------------------------------------------------


def _gradients(
    upstream: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    needs: Needs,
) -> Gradients:
    calls = OPS if torch.compiler.is_compiling() else KERNELS
    options = stride, padding * 2, dilation, groups
    of_input = of_weight = of_bias = None
    if needs[0]:
        of_input = calls.conv2d_input_gradient(upstream, weight, input.shape[2:], *options)
    if needs[1] or needs[2]:
        of_weight, of_bias = calls.conv2d_weight_gradient(upstream, input, weight.shape[2:], *options)
    return of_input, of_weight if needs[1] else None, of_bias if needs[2] else None


conv2d.__dict__["parts"] = Parts(conv2d, _gradients)


# --- both kinds of ops ------------------------------------------------------------------------------------------


def fake_convolution(input: Tensor, weight: Tensor, bias: Any, *options: Any) -> Tensor:
    size = _output_size(input.shape[2:], weight.shape[2:], *options[:3])
    return input.new_empty((input.shape[0], weight.shape[0], *size))


def _fake_input_gradient(upstream: Tensor, weight: Tensor, size: Sequence[int], *options: Any) -> Tensor:
    return upstream.new_empty((upstream.shape[0], weight.shape[1] * options[-1], *size))


def _fake_weight_gradient(
    upstream: Tensor, input: Tensor, kernel_size: Sequence[int], *options: Any
) -> tuple[Tensor, Tensor]:
    shape = (upstream.shape[1], input.shape[1] // options[-1], *kernel_size)
    return upstream.new_empty(shape), upstream.new_empty(shape[:1])


register(
    f"conv2d(Tensor input, Tensor weight, Tensor? bias, {OPTIONS}) -> Tensor",
    convolution,
    fake_convolution,
    _of_convolution,
    _remember,
)
register(
    f"conv2d_input_gradient(Tensor upstream, Tensor weight, SymInt[] size, {OPTIONS}) -> Tensor",
    input_gradient,
    _fake_input_gradient,
    _of_input_gradient,
    _remember,
)
register(
    f"conv2d_weight_gradient(Tensor upstream, Tensor input, SymInt[] kernel_size, {OPTIONS}) -> (Tensor, Tensor)",
    weight_gradient,
    _fake_weight_gradient,
    _of_weight_gradient,
    _remember,
)
