"""`conv2d` and `conv2d_activation`, with their gradients, from the compiled library.

A ReLU costs one more comparison for each register of sums; sigmoid and tanh are computed while a band of the
output is still in the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.native.library import NO_MEMORY, TOO_MUCH, function
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import ConvKernels, convolution_ops, output_size
from convbench.registry.authoring.torch_library import Library

DTYPES = (torch.float32, torch.float64)
ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")  # in the order of `Activation` of activation.hpp
LIBRARY = Library("convbench_native", "cpu")


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
    activation: str = "none",
) -> Tensor:
    """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W').

    Raises:
        Unsupported: this call, or one of its gradients, needs much more memory than its tensors.
    """
    options = tuple(stride), tuple(padding), tuple(dilation), groups
    geometry, size = _geometry(input.shape, weight.shape, *options, activation)
    if not _is_served(input.shape, weight.shape, *options, input.dtype, torch.get_num_threads()):
        raise Unsupported(f"sizes whose copies take far more memory than the tensors: {options}")
    output = input.new_empty(size)
    call("conv2d", geometry, input, weight, bias, output)
    return output


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    size: Sequence[int],
    channels_last: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """(N, O, H', W'), (O, C/groups, kh, kw), (H, W) -> (N, C, H, W)."""
    shape = torch.Size((len(grad_output), weight.shape[1] * groups, *size))
    geometry, _ = _geometry(shape, weight.shape, *map(tuple, (stride, padding, dilation)), groups)
    gradient = grad_output.new_empty(shape)
    call("conv2d_input_gradient", geometry, grad_output, weight, gradient)
    return gradient


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    with_bias: bool,
    channels_last: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """(N, O, H', W'), (N, C, H, W), (kh, kw) -> (O, C/groups, kh, kw) of the weight and (O,) of the bias."""
    shape = torch.Size((grad_output.shape[1], input.shape[1] // groups, *kernel_size))
    geometry, _ = _geometry(input.shape, shape, *map(tuple, (stride, padding, dilation)), groups)
    gradient, of_bias = grad_output.new_empty(shape), grad_output.new_empty(shape[:1])
    call("conv2d_weight_gradient", geometry, grad_output, input, gradient, of_bias)
    return gradient, of_bias


def activation_gradient(grad_output: Tensor, output: Tensor, activation: str) -> Tensor:
    """grad_output · f'(x) of the same shape, from f(x)."""
    gradient = torch.empty_like(grad_output, memory_format=torch.contiguous_format)
    call("activation_gradient", _elements(grad_output.numel(), activation), grad_output, output, gradient)
    return gradient


@lru_cache(maxsize=1024)
def _elements(count: int, activation: str) -> Any:
    """`Elements` of core.hpp."""
    return int64s((count, ACTIVATIONS.index(activation)))


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
    activation: str = "none",
) -> tuple[Any, tuple[int, ...]]:
    """`Geometry` of core.hpp, and the output's shape.

    Raises:
        ValueError: a weight of other channels, or numbers that 64 bits do not hold.
    """
    if groups < 1 or weight[1] * groups != input[1]:
        raise ValueError(
            f"weight {tuple(weight)} with groups={groups} does not fit an input of {tuple(input)}"
        )
    size = output_size(input[2:], weight[2:], stride, padding, dilation)
    filters, _, kh, kw = weight
    numbers = (*input, filters, kh, kw, *stride, *padding[:2], *dilation, groups, *size)
    return int64s((*numbers, ACTIVATIONS.index(activation))), (input[0], filters, *size)


def int64s(numbers: Sequence[int]) -> Any:
    """Numbers as C takes them; ctypes would cut off what does not fit.

    Raises:
        ValueError: one of them does not fit.
    """
    if not all(-(2**63) <= number < 2**63 for number in numbers):
        raise ValueError(f"native: {max(numbers, key=abs)} does not fit into 64 bits")
    return (ctypes.c_int64 * len(numbers))(*numbers)


def call(name: str, sizes: Any, *tensors: Tensor | None, listed: bool = False) -> None:
    """Call a function with the addresses of contiguous tensors; the tensors that it writes are new.

    Args:
        name: of the function; its dtype is that of the first tensor.
        sizes: `Geometry`, `Pooling`, `Network` or `Elements` of core.hpp.
        tensors: those that it reads (copied if they are not contiguous), and those that it writes.
        listed: it takes their addresses as one array.

    Raises:
        MemoryError: there is none for the copies that the kernel makes.
        ValueError: invalid sizes, or a tensor without memory.
    """
    kept = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    addresses: list[Any] = [None if tensor is None else tensor.data_ptr() for tensor in kept]
    if listed:
        addresses = [(ctypes.c_void_p * len(addresses))(*addresses)]
    first = tensors[0]
    assert first is not None
    status = function(name, first.dtype)(sizes, *addresses, torch.get_num_threads())
    if status in (NO_MEMORY, TOO_MUCH):
        raise MemoryError(f"native: no memory for the copies that {name} makes")
    if status:
        raise ValueError(
            f"native: {name} of {list(sizes)}: not sizes of such a call, or a tensor without memory"
        )


KERNELS = ConvKernels(convolution, input_gradient, weight_gradient, ACTIVATIONS[1:], activation_gradient)
CONVOLUTIONS = convolution_ops(LIBRARY, KERNELS, refuse_others)
