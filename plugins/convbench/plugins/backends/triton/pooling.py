"""`max_pool2d` and `avg_pool2d`, with and without an activation before them: how the kernels are launched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from convbench.plugins.backends.triton import interpreted
from convbench.plugins.backends.triton.block_sizes import size_class
from convbench.plugins.backends.triton.convolution import refuse_others
from convbench.plugins.backends.triton.kernels.pooling import (
    avg_pool,
    avg_pool_gradient,
    max_pool,
    max_pool_gradient,
)
from convbench.plugins.backends.triton.torch_ops import LIBRARY, launch, wide
from convbench.registry.authoring.conv_op import channels_last as is_channels_last
from convbench.registry.authoring.conv_op import new_images
from convbench.registry.authoring.pool_op import PoolKernels, pooling_ops

BLOCKS = (1024,) if interpreted() else (256, 512, 1024)
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
    output = new_images(input, (*input.shape[:2], *size), is_channels_last(input))
    places = torch.empty_like(output, dtype=torch.int16)
    _launch(
        _max_pool(), output, (input,), (output, places),
        (*input.shape[2:], *size), (*stride, *padding, *dilation), kernel, ACTIVATION=activation,
    )  # fmt: skip
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
    gradient = new_images(grad_output, (*grad_output.shape[:2], *size), channels_last)
    _launch(
        _max_pool_gradient(), gradient, (grad_output, places), (gradient,),
        (*size, *grad_output.shape[2:]), (*stride, *padding, *dilation), kernel,
    )  # fmt: skip
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
) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W')."""
    output = new_images(input, (*input.shape[:2], *size), is_channels_last(input))
    _launch(
        _avg_pool(), output, (input,), (output,),
        (*input.shape[2:], *size), (*stride, *padding, divisor), kernel,
        COUNT_PADDING=count_padding, ACTIVATION=activation,
    )  # fmt: skip
    return output


def mean_gradient(grad_output: Tensor, size: Ints, channels_last: bool, *options: Any) -> Tensor:
    """(N, C, H', W') -> (N, C, H, W): every value shared out among its window."""
    gradient = new_images(grad_output, (*grad_output.shape[:2], *size), channels_last)
    _share_out(grad_output, gradient, gradient, *options)
    return gradient


def activated_mean(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (N, C, H', W'), and an empty tensor: slopes are computed from the input."""
    return mean(input, *options), input.new_empty(0)


def activated_mean_gradient(grad_output: Tensor, input: Tensor, *options: Any) -> Tensor:
    """(N, C, H', W'), (N, C, H, W) -> (N, C, H, W): the same, times the slope of an activation at the input."""
    gradient = new_images(grad_output, input.shape, is_channels_last(input))
    _share_out(grad_output, input, gradient, *options)
    return gradient


def _share_out(
    grad_output: Tensor,
    input: Tensor,
    gradient: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    count_padding: bool,
    divisor: int,
    activation: str = "none",
) -> None:
    _launch(
        _avg_pool_gradient(), gradient, (grad_output, input), (gradient,),
        (*gradient.shape[2:], *grad_output.shape[2:]), (*stride, *padding, divisor), kernel,
        COUNT_PADDING=count_padding, ACTIVATION=activation,
    )  # fmt: skip


def _launch(
    kernel: Any,
    target: Tensor,
    sources: tuple[Tensor, ...],
    targets: tuple[Tensor, ...],
    extents: Ints,
    options: Ints,
    window: Ints,
    **flags: bool | str,
) -> None:
    """Fill the targets, which lie alike and densely, a lane for each element.

    Args:
        kernel: of `kernels/pooling.py`.
        target: one of the targets.
        sources: what is read, by strides.
        targets: what is written.
        extents: height and width of the images, rows and columns of the windows.
        options: what the kernel takes after the strides.
        window: its kernel size.
        flags: what else the kernel is compiled for.
    """
    numel = target.numel()
    if numel == 0:
        return

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (-(-numel // meta["BLOCK"]),)

    strides = [stride for source in sources for stride in source.stride()]
    launch(
        kernel, grid, target, *sources, *targets, numel, size_class(numel), target.shape[1], *extents, *strides,
        *options, KERNEL_H=int(window[0]), KERNEL_W=int(window[1]), CHANNELS_LAST=is_channels_last(target),
        WIDE=wide(*sources, target), **flags,
    )  # fmt: skip


# torch looks for the kernels of an op in its source, to compile anew where they have changed. It follows functions
# that are called by name, and what they return.


def _max_pool() -> Any:
    return _autotuned(max_pool)


def _max_pool_gradient() -> Any:
    return _autotuned(max_pool_gradient)


def _avg_pool() -> Any:
    return _autotuned(avg_pool)


def _avg_pool_gradient() -> Any:
    return _autotuned(avg_pool_gradient)


@cache
def _autotuned(kernel: Any) -> Any:
    configs = [triton.Config({"BLOCK": block}, num_warps=4) for block in BLOCKS]
    return triton.autotune(
        configs=configs, key=["size_class", "KERNEL_H", "KERNEL_W", "CHANNELS_LAST"], cache_results=True
    )(kernel)


KERNELS = PoolKernels(
    largest,
    largest_gradient,
    mean,
    mean_gradient,
    ("relu", "sigmoid", "tanh"),
    activated_mean,
    activated_mean_gradient,
    most_pixels=2**15,
    keeps_layout=True,
)
POOLING = pooling_ops(LIBRARY, KERNELS, refuse_others)
