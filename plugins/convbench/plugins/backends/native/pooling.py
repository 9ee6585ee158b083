"""`max_pool2d` and `avg_pool2d`, with and without an activation before them, from the compiled library.

The slope of an activation follows from its output: the maximum itself, or for a mean a tensor that the same pass
over the input writes. For a ReLU the input is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.native.convolution import (
    ACTIVATIONS,
    LIBRARY,
    call,
    int64s,
    refuse_others,
)
from convbench.registry.authoring.pool_op import PoolKernels, pooling_ops

Ints = Sequence[int]


def largest(
    input: Tensor,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> the largest values (N, C, H', W'), and their places in their windows."""
    output = input.new_empty((*input.shape[:2], *size))
    places = output.new_empty(output.shape, dtype=torch.int16)
    options = kernel, stride, padding, dilation, size, (0, 0), (activation,)
    call("max_pool2d", _pooling(input.shape, *map(tuple, options)), input, output, places)
    return output, places


def largest_gradient(
    grad_output: Tensor,
    places: Tensor,
    size: Ints,
    channels_last: bool,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value added to the place that was chosen."""
    gradient = grad_output.new_empty((*grad_output.shape[:2], *size))
    options = kernel, stride, padding, dilation, grad_output.shape[2:]
    sizes = _pooling(gradient.shape, *map(tuple, options))
    call("max_pool2d_gradient", sizes, grad_output, places, gradient)
    return gradient


def mean(
    input: Tensor,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: bool,
    divisor: int,
    activation: str = "none",
    *,
    activated: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'); the activations of the input are written to `activated`."""
    output = input.new_empty((*input.shape[:2], *size))
    options = kernel, stride, padding, (1, 1), size, (count_padding, divisor, activation)
    call("avg_pool2d", _pooling(input.shape, *map(tuple, options)), input, output, activated)
    return output


def mean_gradient(
    grad_output: Tensor,
    size: Ints,
    channels_last: bool,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: bool,
    divisor: int,
    *,
    activated: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value shared out among its window, times an activation's slope."""
    gradient = grad_output.new_empty((*grad_output.shape[:2], *size))
    options = kernel, stride, padding, (1, 1), grad_output.shape[2:], (count_padding, divisor, activation)
    sizes = _pooling(gradient.shape, *map(tuple, options))
    call("avg_pool2d_gradient", sizes, grad_output, activated, gradient)
    return gradient


def activated_mean(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (N, C, H', W'), and the activations where the input does not tell their slopes."""
    if options[-1] == "relu":
        return mean(input, *options), input.new_empty(0)
    activated = input.new_empty(input.shape)
    return mean(input, *options, activated=activated), activated


def activated_mean_gradient(grad_output: Tensor, activated: Tensor, *options: Any) -> Tensor:
    """(N, C, H', W'), (N, C, H, W) -> (N, C, H, W)."""
    *others, activation = options
    return mean_gradient(
        grad_output, activated.shape[2:], False, *others, activated=activated, activation=activation
    )


@lru_cache(maxsize=1024)
def _pooling(shape: torch.Size, *options: tuple[int | str, ...]) -> Any:
    """`Pooling` of core.hpp."""
    given = (value for pair in options for value in pair)
    numbers = [ACTIVATIONS.index(value) if isinstance(value, str) else value for value in given]
    numbers = [shape[0] * shape[1], *shape[2:], *numbers]
    return int64s([*numbers, *[0] * (16 - len(numbers))])  # the rest is zero


KERNELS = PoolKernels(
    largest,
    largest_gradient,
    mean,
    mean_gradient,
    ACTIVATIONS[1:],
    activated_mean,
    activated_mean_gradient,
    keeps_activations=True,
)
POOLING = pooling_ops(LIBRARY, KERNELS, refuse_others)
