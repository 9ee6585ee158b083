"""`conv2d` and `conv2d_activation`, with their gradients: which kernel is launched, and on what grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.triton import interpreted
from convbench.plugins.backends.triton.block_sizes import (
    Product,
    Tile,
    autotuned,
    candidates_on,
    size_class,
    variant,
)
from convbench.plugins.backends.triton.kernels.correlation import correlation
from convbench.plugins.backends.triton.kernels.weight_gradient import add_parts, weight_gradient
from convbench.plugins.backends.triton.torch_ops import LIBRARY, launch, wide
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import (
    ConvKernels,
    channels_last,
    convolution_ops,
    new_images,
    output_size,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 528  # of a weight gradient, with which a device is busy: four for each of 132 processors
CHUNK = 1024  # positions of a split, at least


def refuse_others(input: Tensor) -> None:
    """Say what the kernels do not take.

    Raises:
        Unsupported: another dtype, or a device that they do not run on.
    """
    if input.dtype not in DTYPES or not (input.is_cuda or (interpreted() and input.is_cpu)):
        raise Unsupported(f"{input.dtype} on {input.device.type}")


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: in full, or rounded to TF32 where torch's own convolution would be."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # an object that is made at import
    if dtype == torch.float32 and convolutions.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


# --- the launches -----------------------------------------------------------------------------------------------


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
    """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    bias = None if bias is None else bias.contiguous()  # the kernel takes no stride for it
    innermost = channels_last(input) or channels_last(weight)
    output = new_images(input, (input.shape[0], weight.shape[0], *size), innermost)
    _correlate(input, weight, bias, output, (stride, padding, dilation, groups), activation, gradient=False)
    return output


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    size: Sequence[int],
    innermost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """(N, O, H', W'), (O, C/groups, kh, kw), (H, W) -> (N, C, H, W), its channels `innermost` in memory or not."""
    shape = (grad_output.shape[0], weight.shape[1] * groups, *size)
    gradient = new_images(grad_output, shape, innermost)
    _correlate(
        grad_output, weight, None, gradient, (stride, padding, dilation, groups), "none", gradient=True
    )
    return gradient


def _correlate(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: tuple[Sequence[int], Sequence[int], Sequence[int], int],
    activation: str,
    gradient: bool,
) -> None:
    """Fill the target with a convolution, or with an input gradient if `gradient`."""
    if target.numel() == 0:
        return
    stride, (top, left, *_), dilation, groups = options
    filters, depth, *kernel = weight.shape
    inner, outer = (filters // groups, depth) if gradient else (depth, filters // groups)
    steps = [math.gcd(*pair) for pair in zip(stride, dilation, strict=True)] if gradient else [1, 1]
    period = [s // step for s, step in zip(stride, steps, strict=True)] if gradient else [1, 1]
    moves = [-d // step for d, step in zip(dilation, steps, strict=True)] if gradient else list(dilation)
    classes = stride[0] * stride[1] if gradient else 1
    rows, columns = target.shape[2:]
    if gradient:
        rows, columns = _blocks(rows, stride[0]), _blocks(columns, stride[1])
    positions = target.shape[0] * rows * columns
    magnitude = size_class(positions)
    taps = _blocks(kernel[0], period[0]) * _blocks(kernel[1], period[1])
    product = Product(2**magnitude, int(outer), int(inner), int(taps), "depth", int(groups) * classes)
    of = precision(source.dtype)
    tiles = candidates_on(product, source.dtype, of, source.device)
    across_filters = (
        (weight.stride(1), weight.stride(0)) if gradient else (weight.stride(0), weight.stride(1))
    )

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        blocks = _blocks(positions, meta["BLOCK_P"]) * _blocks(outer, meta["BLOCK_O"])
        return blocks * groups, classes

    launch(
        _correlation(product, tiles), grid, target,
        source, weight, source if bias is None else bias, target,
        positions, rows, columns, magnitude, *source.shape[2:], *target.shape[2:], groups, inner, outer,
        *source.stride(), *across_filters, *weight.stride()[2:], *target.stride(),
        top, left, *kernel, *stride, *dilation, *period, *moves,
        GRADIENT=gradient, BIAS=bias is not None, ACTIVATION=activation, CHANNELS_LAST=channels_last(target),
        WIDE=wide(source, weight, target), UPCAST=interpreted(), PRECISION=of,
    )  # fmt: skip


def weight_gradients(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    with_bias: bool,
    innermost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """(N, O, H', W'), (N, C, H, W), (kh, kw) -> (O, C/groups, kh, kw) of the weight and (O,) of the bias."""
    filters, (rows, columns) = grad_output.shape[1], grad_output.shape[2:]
    inner, outer = input.shape[1] // groups, filters // groups
    gradient = new_images(grad_output, (filters, inner, *kernel_size), innermost)
    of_bias = grad_output.sum((0, 2, 3)) if with_bias else grad_output.new_empty(filters)
    positions = grad_output.shape[0] * rows * columns
    if gradient.numel() == 0 or positions == 0:
        return gradient.zero_(), of_bias
    magnitude = size_class(positions)
    taps = kernel_size[0] * kernel_size[1]
    product = Product(int(outer), int(inner), 2**magnitude, int(taps), "columns", int(groups))
    of = precision(input.dtype)
    tiles = candidates_on(product, input.dtype, of, input.device)
    sums = int(groups) * _blocks(int(outer), 64) * _blocks(int(inner * taps), 64)
    splits = max(1, min(_blocks(PROGRAMS, sums), 2 ** (magnitude - 1) // CHUNK))
    chunk = positions if splits == 1 else _blocks(_blocks(positions, splits), 128) * 128  # whole blocks
    numel = gradient.numel()
    parts = gradient if splits == 1 else torch.empty(splits * numel, dtype=torch.float32, device=input.device)

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        width = meta["BLOCK_J"]
        columns = _blocks(inner * taps, width) if meta["FOLDED"] else _blocks(inner, width) * taps
        return columns * _blocks(outer, meta["BLOCK_O"]) * groups, splits

    launch(
        _weight_gradient(product, tiles), grid, parts,
        grad_output, input, parts, positions, rows, columns, magnitude, chunk, *input.shape[2:],
        groups, inner, outer, *grad_output.stride(), *input.stride(), numel, *gradient.stride(),
        *padding[:2], *kernel_size, *stride, *dilation,
        WIDE=wide(grad_output, input) or splits * numel >= 2**30, UPCAST=interpreted(), PRECISION=of,
    )  # fmt: skip
    if splits > 1:
        launch(_add_parts(), (_blocks(numel, 256),), gradient, parts, gradient, numel, splits, BLOCK=256)
    return gradient, of_bias


# torch looks for the kernels of an op in its source, to compile anew where they have changed. It follows functions
# that are called by name, and what they return.


def _correlation(product: Product, tiles: tuple[Tile, ...]) -> Any:
    return autotuned(variant(correlation, product), tiles, ("BLOCK_P", "BLOCK_O", "BLOCK_K"))


def _weight_gradient(product: Product, tiles: tuple[Tile, ...]) -> Any:
    return autotuned(variant(weight_gradient, product), tiles, ("BLOCK_O", "BLOCK_J", "BLOCK_R"))


def _add_parts() -> Any:
    return add_parts


def _blocks(extent: int, size: int) -> int:
    return -(-extent // size)


KERNELS = ConvKernels(
    convolution, input_gradient, weight_gradients, ("relu", "sigmoid", "tanh"), keeps_layout=True
)
CONVOLUTIONS = convolution_ops(LIBRARY, KERNELS, refuse_others)
