"""`conv2d_activation_max_pool2d` and `conv2d_activation_avg_pool2d`: a stage of a network as one call each way.

A block of images goes through convolution, activation and pooling within the cache of one core (`core/stage.hpp`).
Compilers see the three layers instead, and so does whoever asks for gradients of gradients.
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
from convbench.registry.authoring.conv_op import output_size, resolved_options
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import pooling_options
from convbench.registry.ops.window import IntPair


class _Stage(Function):
    """Forward and backward pass of a stage; a gradient of its gradients is that of the layers."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sizes: Any,
        layers: Callable[..., Tensor],
    ) -> Tensor:
        geometry, shape, kept_numbers, places = sizes
        output = input.new_empty(shape)
        kept, chosen = input.new_empty(kept_numbers), input.new_empty(places, dtype=torch.int16)
        call("stage", geometry, input, weight, bias, output, kept, chosen if places else None)
        ctx.save_for_backward(input, weight, bias, kept, chosen)
        ctx.sizes, ctx.layers = geometry, layers
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, kept, chosen = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            tensors = [each for each, needed in zip((input, weight, bias), needs, strict=False) if needed]
            found = iter(
                torch.autograd.grad(ctx.layers(input, weight, bias), tensors, grad_output, create_graph=True)
            )
            return *(next(found) if needed else None for needed in needs[:3]), None, None
        of_input = input.new_empty(input.shape) if needs[0] else None
        of_weight, of_bias = weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])
        call(
            "stage_gradients", ctx.sizes, grad_output, input, weight, kept,
            chosen if chosen.numel() else None, of_input, of_weight, of_bias,
        )  # fmt: skip
        return of_input, of_weight if needs[1] else None, of_bias if needs[2] else None, None, None


@lru_cache(maxsize=1024)
def _sizes(
    input: torch.Size,
    weight: torch.Size,
    dtype: torch.dtype,
    lanes: int,
    maximum: bool,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    activation: str,
    kernel_size: IntPair,
    pool_stride: IntPair | None,
) -> tuple[Any, tuple[int, ...], int, int] | None:
    """`Stage` of core.hpp, the output's shape, and how many numbers and places are kept for the gradient.

    None for sizes for which the layers one by one are faster, or have kernels alone.

    Raises:
        ValueError: a pooling that torch refuses.
    """
    rows, columns = output_size(input[2:], weight[2:], stride, padding, dilation)
    filters, _, kh, kw = weight
    summed = torch.empty((max(1, input[0]), filters, rows, columns), device="meta")
    size, window, steps, *_ = pooling_options(False, summed, kernel_size, pool_stride, 0, 1, False)
    of_convolution = (
        *input, filters, kh, kw, *stride, *padding[:2], *dilation, groups, rows, columns,
        ACTIVATIONS.index(activation),
    )  # fmt: skip
    geometry = int64s((*of_convolution, int(maximum), *window, *steps, *size))
    kept = function("stage_kept", dtype)(geometry)
    if not kept:
        return None
    return geometry, (input[0], filters, *size), kept, kept if maximum else 0


def _stage(pooling: str) -> Callable[..., Tensor]:
    maximum = pooling == "max_pool2d"

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
        name = activation_of(activation).name
        if name not in ACTIVATIONS[1:]:
            raise Unsupported(f"activation {name!r}")
        window, steps = _hashable(kernel_size), _hashable(pool_stride)

        def layers(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            convolved = CONVOLUTIONS["conv2d"](input, weight, bias, stride, padding, dilation, groups)
            return POOLING[f"activation_{pooling}"](convolved, window, steps, activation=name)

        traced, options = resolved_options(
            refuse_others, input, weight, bias, stride, padding, dilation, groups
        )
        if traced:
            return layers(input, weight, bias)
        sizes = _sizes(
            input.shape, weight.shape, input.dtype, lanes(input.dtype), maximum, *options, name, window, steps
        )
        if sizes is None:
            raise Unsupported("a stage of these sizes: its layers are computed one by one")
        output: Tensor = _Stage.apply(input, weight, bias, sizes, layers)
        return output

    return stage


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


STAGES = {f"conv2d_activation_{name}": _stage(name) for name in ("max_pool2d", "avg_pool2d")}
