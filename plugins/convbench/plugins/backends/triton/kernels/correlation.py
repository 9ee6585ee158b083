"""The kernel behind the forward pass and the input gradient: a matrix product whose left matrix is never written.

    target[position, outer]  =  sum over k  of  patches[position, k] * kernels[k, outer]      k = (inner, tap)

    rows of the product       positions of the output, of all images one after the other
    columns                   channels of the output, of one group
    what is summed over       channels of the source and taps of the kernel

                 BLOCK_K                       BLOCK_O
              +----------+                    +--------+
              |          |            BLOCK_K |        |
      BLOCK_P | patches  |         x          | weight |        ->  BLOCK_P x BLOCK_O sums in float32 registers
              |          |                    +--------+
              +----------+

A program walks along k, and gathers a block of patches at each step: a tap is a distance from the pixel under the
kernel's corner, and what lies outside of the image is masked. There are two ways to walk:

- not FOLDED: all taps of a block of channels, and then the next block. At each step there is one tap, so that a
  mask is asked for once for each position. It needs channels enough to fill BLOCK_K.
- FOLDED: (channel, tap) is one axis, as in the memory of a contiguous weight. With one channel and 25 taps, k
  is 25 long and not 25 times a block that is empty but for one channel. Masks are as large as the patches.

**The input gradient** is the same product of the output's gradient and the kernels turned over. With a stride
s, the pixels of one residue of (row + padding) modulo s see the same taps, every (s / gcd(s, dilation))th, and
each of these classes is a dense correlation: nothing is multiplied by the zeros between the pixels of a dilated
gradient, and no two programs add to one pixel. The second axis of the grid is the class.

    stride 2, kernel 3, padding 1           rows      0    1    2    3    4
                                            residue   1    0    1    0    1
                                            taps      1   0,2   1   0,2   1
"""

from __future__ import annotations

import triton
import triton.language as tl

from convbench.plugins.backends.triton.kernels.activation import activate

# Compiled once for all of these; strides and channels are looked at, for loads of many elements at a time.
GEOMETRY = [
    "positions", "rows", "columns", "size_class", "source_height", "source_width", "target_height", "target_width",
    "groups", "top", "left", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w",
    "period_h", "period_w", "step_h", "step_w",
]  # fmt: skip


@triton.jit
def axis_of_class(residue, pad, kernel, stride, dilation, period, GRADIENT: tl.constexpr):
    """Where things start along one axis: first target, first tap, number of taps, source under them.

    Going forward there is one class, of all positions and all taps.
    """
    first, tap, taps = 0, 0, kernel
    origin = -pad
    if GRADIENT:
        first = (residue + stride - pad % stride) % stride
        tap = kernel
        for candidate in range(period):
            hit = ((candidate * dilation) % stride == residue) & (candidate < kernel)
            tap = tl.where(hit, candidate, tap)  # there is one at most
        taps = (kernel - tap + period - 1) // period
        origin = (first + pad - tap * dilation) // stride  # divides without a remainder where there are taps
    return first, tap, taps, origin


@triton.jit(do_not_specialize=GEOMETRY)
def correlation(
    source,
    weight,
    bias,
    target,
    positions,  # of one class in all images
    rows,  # of positions in one image
    columns,
    size_class,  # of the call, for the autotuner
    source_height,
    source_width,
    target_height,
    target_width,
    groups,
    inner,  # channels of a group that are summed over
    outer,  # channels of a group that come out
    source_n,  # strides, in elements
    source_c,
    source_h,
    source_w,
    weight_outer,
    weight_inner,
    weight_h,
    weight_w,
    target_n,
    target_c,
    target_h,
    target_w,
    top,
    left,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    period_h,  # of the taps of a class: stride / gcd(stride, dilation); 1 going forward
    period_w,
    step_h,  # from one of these taps to the next, in pixels of the source
    step_w,
    GRADIENT: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FOLDED: tl.constexpr,
    EVEN: tl.constexpr,  # whole blocks of channels, whatever their size
    CHANNELS_LAST: tl.constexpr,  # the target
    WIDE: tl.constexpr,  # offsets that 32 bits do not hold
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    outer_blocks = tl.cdiv(outer, BLOCK_O)  # neighbours share their patches
    program = tl.program_id(0)
    outer_block = program % outer_blocks
    group = program // outer_blocks % groups
    position_block = program // (outer_blocks * groups)
    if WIDE:
        position_block = position_block.to(tl.int64)
        group = group.to(tl.int64)
    position = position_block * BLOCK_P + tl.arange(0, BLOCK_P)
    column = position % columns
    row = position // columns % rows
    image = position // columns // rows
    valid = position < positions

    residue_h = tl.program_id(1) // stride_w
    residue_w = tl.program_id(1) % stride_w
    first_h, tap_h, taps_h, origin_h = axis_of_class(
        residue_h, top, kernel_h, stride_h, dilation_h, period_h, GRADIENT
    )
    first_w, tap_w, taps_w, origin_w = axis_of_class(
        residue_w, left, kernel_w, stride_w, dilation_w, period_w, GRADIENT
    )
    if GRADIENT:
        target_row = first_h + row * stride_h
        target_column = first_w + column * stride_w
        source_row = origin_h + row
        source_column = origin_w + column
        valid = valid & (target_row < target_height) & (target_column < target_width)
    else:
        target_row = row
        target_column = column
        source_row = origin_h + row * stride_h
        source_column = origin_w + column * stride_w

    out = outer_block * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tl.arange(0, BLOCK_K)
    if WIDE:
        out = out.to(tl.int64)
        k = k.to(tl.int64)
    # filters are contiguous over all groups, and the weight's other axis has the channels of one group
    if GRADIENT:
        weight += group * inner * weight_inner + tap_h * weight_h + tap_w * weight_w
    else:
        weight += group * outer * weight_outer
    corner = image * source_n + source_row * source_h + source_column * source_w + group * inner * source_c
    of_outer = out * weight_outer
    is_outer = out < outer
    taps = taps_h * taps_w
    sums = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)

    if FOLDED:
        for start in range(0, inner * taps, BLOCK_K):
            place = start + k
            channel = place // taps
            down = place % taps // taps_w
            across = place % taps_w
            at_row = source_row[None, :] + (down * step_h)[:, None]
            at_column = source_column[None, :] + (across * step_w)[:, None]
            inside = (at_row >= 0) & (at_row < source_height) & (at_column >= 0) & (at_column < source_width)
            inside = inside & valid[None, :] & (channel < inner)[:, None]
            moved = channel * source_c + down * (step_h * source_h) + across * (step_w * source_w)
            patches = tl.load(source + (corner[None, :] + moved[:, None]), mask=inside, other=0.0)
            of_inner = channel * weight_inner + down * (period_h * weight_h) + across * (period_w * weight_w)
            held = (channel < inner)[:, None] & is_outer[None, :]
            kernels = tl.load(weight + (of_inner[:, None] + of_outer[None, :]), mask=held, other=0.0)
            if UPCAST:
                patches, kernels = patches.to(tl.float32), kernels.to(tl.float32)
            sums = tl.dot(tl.trans(patches), kernels, sums, input_precision=PRECISION)
    else:
        for step in range(tl.cdiv(inner, BLOCK_K) * taps):
            channel = step // taps * BLOCK_K + k
            down = step % taps // taps_w
            across = step % taps_w
            at_row = source_row + down * step_h
            at_column = source_column + across * step_w
            inside = (at_row >= 0) & (at_row < source_height) & (at_column >= 0) & (at_column < source_width)
            inside = (inside & valid)[None, :]
            held = is_outer[None, :]
            if not EVEN:
                inside = inside & (channel < inner)[:, None]
                held = held & (channel < inner)[:, None]
            there = corner + down * (step_h * source_h) + across * (step_w * source_w)
            patches = tl.load(
                source + ((channel * source_c)[:, None] + there[None, :]), mask=inside, other=0.0
            )
            of_inner = channel * weight_inner + down * (period_h * weight_h) + across * (period_w * weight_w)
            kernels = tl.load(weight + (of_inner[:, None] + of_outer[None, :]), mask=held, other=0.0)
            if UPCAST:
                patches, kernels = patches.to(tl.float32), kernels.to(tl.float32)
            sums = tl.dot(tl.trans(patches), kernels, sums, input_precision=PRECISION)

    if BIAS:
        sums += tl.load(bias + group * outer + out, mask=is_outer, other=0.0).to(tl.float32)[None, :]
    sums = activate(sums, ACTIVATION).to(target.dtype.element_ty)
    pixel = image * target_n + target_row * target_h + target_column * target_w
    plane = (group * outer + out) * target_c
    if CHANNELS_LAST:  # what lies side by side in memory goes along the last axis
        tl.store(target + (pixel[:, None] + plane[None, :]), sums, mask=valid[:, None] & is_outer[None, :])
    else:
        tl.store(
            target + (plane[:, None] + pixel[None, :]),
            tl.trans(sums),
            mask=is_outer[:, None] & valid[None, :],
        )
