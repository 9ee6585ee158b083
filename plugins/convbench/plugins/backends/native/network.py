"""`sequential`, and a stage alone, as one call each way.

A block of images goes through all layers within the cache of one core (`core/network.hpp`). Compilers see the
layers instead, and so does whoever asks for gradients of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convbench.plugins.backends.native.convolution import (
    ACTIVATIONS,
    CONVOLUTIONS,
    call,
    int64s,
    refuse_others,
)
from convbench.plugins.backends.native.library import function, lanes
from convbench.plugins.backends.native.pooling import POOLING
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import output_size
from convbench.registry.authoring.torch_library import has_memory
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import being_traced, convolution_options, pooling_options
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.fused import STAGES
from convbench.registry.ops.sequential import Layers, in_order, in_parts, in_turn, sequential, with_parameters
from convbench.registry.ops.window import IntPair


class _Network(Function):
    """Forward and backward pass of layers; a gradient of its gradients is that of the layers one by one."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, sizes: Any, layers: Layers, *parameters: Tensor | None) -> Tensor:
        network, shape, kept_numbers = sizes
        output, kept = input.new_empty(shape), input.new_empty(kept_numbers)
        call("network", network, input, output, kept, *parameters, listed=True)
        ctx.save_for_backward(input, kept, *parameters)
        ctx.network, ctx.layers = network, layers
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, kept, *parameters = ctx.saved_tensors
        of_input, _, _, *needed = ctx.needs_input_grad
        again = torch.is_grad_enabled()
        if again or not has_memory(grad_output):
            tensors = [
                each for each, wanted in zip((input, *parameters), (of_input, *needed), strict=True) if wanted
            ]
            with torch.enable_grad():
                output = in_turn(_ONE_BY_ONE, input, parameters, ctx.layers)
            found = iter(torch.autograd.grad(output, tensors, grad_output, create_graph=again))
            first = next(found) if of_input else None
            return first, None, None, *(next(found) if wanted else None for wanted in needed)
        gradient = torch.empty_like(input, memory_format=torch.contiguous_format) if of_input else None
        gradients: list[Tensor] = []
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            gradients += (
                torch.empty_like(weight, memory_format=torch.contiguous_format),
                weight.new_empty(len(weight)) if bias is None else torch.empty_like(bias),
            )
        call(
            "network_gradients", ctx.network, grad_output, input, kept, gradient, *parameters, *gradients,
            listed=True,
        )  # fmt: skip
        wanted = (each if wanted else None for each, wanted in zip(gradients, needed, strict=True))
        return gradient, None, None, *wanted


@lru_cache(maxsize=1024)
def _sizes(
    input: torch.Size, dtype: torch.dtype, lanes: int, layers: Layers, *parameters: Any
) -> tuple[Any, tuple[int, ...], int] | None:
    """`Network` of core.hpp, the output's shape, and how many numbers are kept for the gradient.

    None for sizes for which the layers one by one are faster, or have kernels alone.

    Raises:
        ValueError, RuntimeError: a call that torch refuses.
    """
    images = torch.empty(input, dtype=dtype, device="meta")
    tensors = [each and torch.empty(each[0], dtype=each[1], device="meta") for each in parameters]
    numbers: list[int] = []
    for layer, weight, bias in with_parameters(tensors, layers):
        name, *options = layer
        before, given = images, () if weight is None else (weight, bias)
        images = sequential(images, *given, layers=(layer,))
        if name == "linear":
            numbers += _linear(weight, images, *options)
        elif name != "flatten":
            numbers += _stage(name.endswith("max_pool2d"), before, weight, bias, *options)
    network = int64s((sum(each != ("flatten",) for each in layers), *numbers))
    kept = function("network_kept", dtype)(network)
    return (network, tuple(images.shape), kept) if kept else None


def _stage(
    maximum: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str,
    kernel_size: IntPair,
    pool_stride: IntPair | None = None,
) -> tuple[int, ...]:
    """`Stage` of core.hpp."""
    strides, pads, gaps, groups = convolution_options(
        True, input, weight, bias, stride, padding, dilation, groups
    )
    rows, columns = output_size(input.shape[2:], weight.shape[2:], strides, pads, gaps)
    filters, _, kh, kw = weight.shape
    summed = torch.empty((max(1, len(input)), filters, rows, columns), device="meta")
    size, window, steps, *_ = pooling_options(True, summed, kernel_size, pool_stride, 0, 1, False)
    return (
        *input.shape, filters, kh, kw, *strides, *pads[:2], *gaps, groups, rows, columns,
        _activation(activation), int(maximum), *window, *steps, *size,
    )  # fmt: skip


def _linear(weight: Tensor, output: Tensor, activation: str) -> tuple[int, ...]:
    """The same of a linear layer: a convolution of one pixel, and a pooling of it."""
    filters, channels = weight.shape
    ones = (1,) * 2
    return (
        len(output), channels, *ones, filters, *ones, *ones, 0, 0, *ones, 1, *ones,
        0 if activation == "none" else _activation(activation), 0, *ones, *ones, *ones,
    )  # fmt: skip


def _activation(name: str) -> int:
    if activation_of(name).name not in ACTIVATIONS[1:]:
        raise Unsupported(f"activation {name!r}")
    return ACTIVATIONS.index(name)


def network(input: Tensor, *parameters: Tensor | None, layers: Layers, **named: Tensor | None) -> Tensor:
    """As `sequential` of the contract."""
    parameters = in_order(parameters, named)
    refuse_others(input)
    if being_traced(input):
        return in_turn(_ONE_BY_ONE, input, parameters, layers)
    for tensor in parameters:
        if tensor is not None and not tensor.is_cpu:
            raise ValueError(f"input is on {input.device}, but a parameter on {tensor.device}")
    of_parameters = (None if each is None else (each.shape, each.dtype) for each in parameters)
    sizes = _sizes(input.shape, input.dtype, lanes(input.dtype), layers, *of_parameters)
    if sizes is None:
        raise Unsupported("layers of these sizes: they are computed one by one")
    output: Tensor = _Network.apply(input, sizes, layers, *parameters)
    return output


def _alone(name: str) -> Callable[..., Tensor]:
    def stage(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        activation: str = "relu",
        kernel_size: IntPair = 2,
        pool_stride: IntPair | None = None,
    ) -> Tensor:
        """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
        options = stride, padding, dilation, groups, activation, kernel_size, pool_stride
        hashable = (tuple(each) if isinstance(each, list) else each for each in options)
        return network(input, weight, bias, layers=((name, *hashable),))

    return stage


_ONE_BY_ONE = {name: in_parts(OPS[name], {**CONVOLUTIONS, **POOLING}) for name in STAGES}
NETWORKS = {**{name: _alone(name) for name in STAGES}, "sequential": network}
