"""`conv2d` and its gradients as ops of torch (`torch_ops.py`).

All three are linear in both of their tensors, and the derivatives of each are the other two: gradients of
gradients work to any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.triton.availability import interpreted
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
from convbench.plugins.backends.triton.layouts import channels_last, new_images, wide
from convbench.plugins.backends.triton.torch_ops import EAGER, OPS, launch, register
from convbench.registry import Unsupported
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import being_traced, convolution_options
from convbench.registry.ops.window import IntPair

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 528  # of a weight gradient, with which a device is busy: four for each of 132 processors
CHUNK = 1024  # positions of a split, at least


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
    return _convolve(input, weight, bias, stride, padding, dilation, groups, "none")


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
    """activation(conv2d(...)) in one kernel: shapes as there, `activation` one of `relu`, `sigmoid` and `tanh`."""
    name = activation_of(activation).name
    return _convolve(input, weight, bias, stride, padding, dilation, groups, name)


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None, *call: Any) -> Tensor:
    refuse_others(input)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"input is on {input.device}, but {name} on {tensor.device}")
    *given, activation = call
    compiled = being_traced(input)
    options = convolution_options(compiled, input, weight, bias, *given)
    convolved: Tensor = (OPS if compiled else EAGER).conv2d(input, weight, bias, *options, activation)
    return convolved


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
    activation: str,
) -> Tensor:
    """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    innermost = channels_last(input) or channels_last(weight)
    output = new_images(input, (input.shape[0], weight.shape[0], *size), innermost)
    _correlate(input, weight, bias, output, (stride, padding, dilation, groups), activation, gradient=False)
    return output


def input_gradient(
    upstream: Tensor,
    weight: Tensor,
    size: Sequence[int],
    innermost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """(N, O, H', W'), (O, C/groups, kh, kw), (H, W) -> (N, C, H, W), its channels `innermost` in memory or not."""
    shape = (upstream.shape[0], weight.shape[1] * groups, *size)
    gradient = new_images(upstream, shape, innermost)
    _correlate(upstream, weight, None, gradient, (stride, padding, dilation, groups), "none", gradient=True)
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
    """Fill the target; going back, with what of the upstream gradient reaches it."""
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
    upstream: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    innermost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """(N, O, H', W'), (N, C, H, W), (kh, kw) -> (O, C/groups, kh, kw), its channels `innermost` or not."""
    filters, (rows, columns) = upstream.shape[1], upstream.shape[2:]
    inner, outer = input.shape[1] // groups, filters // groups
    gradient = new_images(upstream, (filters, inner, *kernel_size), innermost)
    positions = upstream.shape[0] * rows * columns
    if gradient.numel() == 0 or positions == 0:
        return gradient.zero_()
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
        upstream, input, parts, positions, rows, columns, magnitude, chunk, *input.shape[2:],
        groups, inner, outer, *upstream.stride(), *input.stride(), numel, *gradient.stride(),
        *padding[:2], *kernel_size, *stride, *dilation,
        WIDE=wide(upstream, input) or splits * numel >= 2**30, UPCAST=interpreted(), PRECISION=of,
    )  # fmt: skip
    if splits > 1:
        launch(_add_parts(), (_blocks(numel, 256),), gradient, parts, gradient, numel, splits, BLOCK=256)
    return gradient


# torch looks for the kernels of an op in its source, to compile anew where they have changed. It follows functions
# that are called by name, and what they return.


def _correlation(product: Product, tiles: tuple[Tile, ...]) -> Any:
    return autotuned(variant(correlation, product), tiles, ("BLOCK_P", "BLOCK_O", "BLOCK_K"))


def _weight_gradient(product: Product, tiles: tuple[Tile, ...]) -> Any:
    return autotuned(variant(weight_gradient, product), tiles, ("BLOCK_O", "BLOCK_J", "BLOCK_R"))


def _add_parts() -> Any:
    return add_parts


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Rows and columns that come out."""
    pads = padding[0] + padding[2], padding[1] + padding[3]
    axes = zip(size, pads, dilation, kernel, stride, strict=True)
    return [(extent + pad - gap * (taps - 1) - 1) // step + 1 for extent, pad, gap, taps, step in axes]


def _blocks(extent: int, size: int) -> int:
    return -(-extent // size)


# --- their derivatives ------------------------------------------------------------------------------------------
# Each takes the functions to call, for eager ops and those of compilers are different ones.


def _of_convolution(calls: Any, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    input, weight, *output = ctx.saved_tensors
    if output:
        upstream = through(ctx.activation, upstream, output[0])
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = calls.conv2d_input_gradient(
            upstream, weight, input.shape[2:], channels_last(input), *ctx.options
        )
    if ctx.needs_input_grad[1]:
        of_weight = calls.conv2d_weight_gradient(
            upstream, input, weight.shape[2:], channels_last(weight), *ctx.options
        )
    if ctx.needs_input_grad[2]:
        of_bias = upstream.sum((0, 2, 3))
    return of_input, of_weight, of_bias, None, None, None, None, None


def through(activation: str, upstream: Tensor, output: Tensor) -> Tensor:
    """The gradient of what an activation was given, from that of what came out, which says enough."""
    if activation == "relu":
        return upstream.where(~(output <= 0), 0)
    wide_output = output.float()
    slope = 1 - wide_output.square() if activation == "tanh" else wide_output * (1 - wide_output)
    return (upstream.float() * slope).to(upstream.dtype)


def _of_input_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    upstream, weight = ctx.saved_tensors
    of_upstream = of_weight = None
    if ctx.needs_input_grad[0]:
        of_upstream = calls.conv2d(change, weight, None, *ctx.options, "none")
    if ctx.needs_input_grad[1]:
        of_weight = calls.conv2d_weight_gradient(
            upstream, change, weight.shape[2:], channels_last(weight), *ctx.options
        )
    return of_upstream, of_weight, None, None, None, None, None, None


def _of_weight_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    upstream, input = ctx.saved_tensors
    of_upstream = of_input = None
    if ctx.needs_input_grad[0]:
        of_upstream = calls.conv2d(input, change, None, *ctx.options, "none")
    if ctx.needs_input_grad[1]:
        of_input = calls.conv2d_input_gradient(
            upstream, change, input.shape[2:], channels_last(input), *ctx.options
        )
    return of_upstream, of_input, None, None, None, None, None, None


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *options, ctx.activation = inputs[3:]
    ctx.options = tuple(options)
    ctx.save_for_backward(*inputs[:2], *([] if ctx.activation == "none" else [output]))


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options = inputs[4:]


register("conv2d", convolution, _of_convolution, _keep_convolution)
register("conv2d_input_gradient", input_gradient, _of_input_gradient, _keep_gradient)
register("conv2d_weight_gradient", weight_gradients, _of_weight_gradient, _keep_gradient)
