"""The weight gradient: a matrix product that sums over all positions of all images, split among programs.

    gradient[outer, j] = sum over p of grad_output[outer, p] * patches[p, j]    p: positions, j = (inner, tap)

The result is small and the sum is long: there are few tiles, and to have work for the whole device, each tile's
sum is split into as many parts as `splits` says. A part is written to a workspace of float32, and a second
kernel adds the parts in their order. Atomic additions would save it, and change the result from run to run.

                     split 0          split 1          split 2
    positions   |----------------|----------------|-----------|
                        |                |              |
    workspace        [ tile ]    +    [ tile ]    +  [ tile ]         added from left to right

As in `correlation`, (inner, tap) is one axis where FOLDED; otherwise a tile has one tap and a block of
channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Compiled once for all of these, as in `correlation`.
GEOMETRY = [
    "positions", "rows", "columns", "size_class", "chunk", "source_height", "source_width", "groups", "part",
    "top", "left", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w",
]  # fmt: skip


@triton.jit(do_not_specialize=GEOMETRY)
def weight_gradient(
    grad_output,
    source,
    parts,
    positions,
    rows,
    columns,
    size_class,  # of the call, for the autotuner
    chunk,  # positions of a split
    source_height,
    source_width,
    groups,
    inner,
    outer,
    upstream_n,  # strides, in elements
    upstream_c,
    upstream_h,
    upstream_w,
    source_n,
    source_c,
    source_h,
    source_w,
    part,  # from one split's result to the next
    weight_outer,
    weight_inner,
    weight_h,
    weight_w,
    top,
    left,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    FOLDED: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    taps = kernel_h * kernel_w
    outer_blocks = tl.cdiv(outer, BLOCK_O)
    tiles = tl.cdiv(inner * taps, BLOCK_J) if FOLDED else tl.cdiv(inner, BLOCK_J) * taps
    program = tl.program_id(0)
    outer_block = program % outer_blocks
    tile = program // outer_blocks % tiles
    group = program // (outer_blocks * tiles)
    split = tl.program_id(1)

    j = tl.arange(0, BLOCK_J)
    if FOLDED:
        place = tile * BLOCK_J + j
        channel = place // taps
        tap = place % taps
    else:
        channel = tile // taps * BLOCK_J + j
        tap = tile % taps
    down = tap // kernel_w * dilation_h - top
    across = tap % kernel_w * dilation_w - left
    out = outer_block * BLOCK_O + tl.arange(0, BLOCK_O)
    is_outer = out < outer
    is_inner = channel < inner
    start = split * chunk
    if WIDE:
        group, out, channel = group.to(tl.int64), out.to(tl.int64), channel.to(tl.int64)
        start = split.to(tl.int64) * chunk
    of_outer = (group * outer + out) * upstream_c
    of_inner = (group * inner + channel) * source_c
    end = tl.minimum(start + chunk, positions)
    r = tl.arange(0, BLOCK_R)
    sums = tl.zeros((BLOCK_O, BLOCK_J), dtype=tl.float32)

    for offset in range(0, chunk, BLOCK_R):
        position = start + offset + r
        column = position % columns
        row = position // columns % rows
        image = position // columns // rows
        valid = position < end
        pixel = image * upstream_n + row * upstream_h + column * upstream_w
        held = is_outer[:, None] & valid[None, :]
        gradient = tl.load(grad_output + (of_outer[:, None] + pixel[None, :]), mask=held, other=0.0)
        if FOLDED:
            at_row = (row * stride_h)[None, :] + down[:, None]
            at_column = (column * stride_w)[None, :] + across[:, None]
            inside = (at_row >= 0) & (at_row < source_height) & (at_column >= 0) & (at_column < source_width)
            inside = inside & valid[None, :] & is_inner[:, None]
            there = of_inner[:, None] + at_row * source_h + at_column * source_w + (image * source_n)[None, :]
        else:
            at_row = row * stride_h + down
            at_column = column * stride_w + across
            inside = (at_row >= 0) & (at_row < source_height) & (at_column >= 0) & (at_column < source_width)
            inside = (inside & valid)[None, :] & is_inner[:, None]
            there = of_inner[:, None] + (image * source_n + at_row * source_h + at_column * source_w)[None, :]
        patches = tl.load(source + there, mask=inside, other=0.0)
        if UPCAST:
            gradient, patches = gradient.to(tl.float32), patches.to(tl.float32)
        sums = tl.dot(gradient, tl.trans(patches), sums, input_precision=PRECISION)

    of_tap = tap // kernel_w * weight_h + tap % kernel_w * weight_w
    of_weight = ((group * outer + out) * weight_outer)[:, None] + (channel * weight_inner + of_tap)[None, :]
    if WIDE:
        split = split.to(tl.int64)
    tl.store(
        parts + split * part + of_weight,
        sums.to(parts.dtype.element_ty),
        mask=is_outer[:, None] & is_inner[None, :],
    )


@triton.jit
def add_parts(parts, total, numel, splits, BLOCK: tl.constexpr):
    """Sum the parts of every element, the first one first."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = element < numel
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(splits):
        sums += tl.load(parts + element, mask=there, other=0.0)
        parts += numel
    tl.store(total + element, sums.to(total.dtype.element_ty), mask=there)
