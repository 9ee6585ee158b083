"""Pooling: one lane for each output, or for each pixel of a gradient, which looks through its window.

A lane gathers: in the gradients, a pixel asks each window that covers it for its share, so that nothing is
added by two lanes at once, and results do not depend on who is first. Elements are numbered as they lie in
memory, columns first, or channels first where CHANNELS_LAST, so that neighbouring lanes load and store side by
side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convbench.plugins.backends.triton.kernels.activation import activate, slope

# Compiled once for all of these.
GEOMETRY = [
    "size_class", "height", "width", "rows", "columns", "stride_h", "stride_w", "top", "left", "dilation_h",
    "dilation_w", "divide_by",
]  # fmt: skip


@triton.jit
def place(element, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Image, channel, row and column of an element that lies densely in memory."""
    if CHANNELS_LAST:
        channel = element % channels
        pixel = element // channels
        column = pixel % width
        row = pixel // width % height
        image = pixel // width // height
    else:
        column = element % width
        line = element // width
        row = line % height
        channel = line // height % channels
        image = line // height // channels
    return image, channel, row, column


@triton.jit
def lanes(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def extent(index, size, kernel, stride, pad, COUNT_PADDING: tl.constexpr):
    """How many rows, or columns, the mean of a window counts; what hangs over the padding never counts."""
    start = index * stride
    low = pad
    high = pad + size
    if COUNT_PADDING:
        low = 0
        high = pad + size + pad
    return tl.minimum(start + kernel, high) - tl.maximum(start, low)


@triton.jit
def divisor(
    row, column, height, width, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, stride_h, stride_w, top, left,
    divide_by, COUNT_PADDING: tl.constexpr,
):  # fmt: skip
    """What the sum over a window is divided by: `divide_by`, or how many pixels it counts where that is 0."""
    count = extent(row, height, KERNEL_H, stride_h, top, COUNT_PADDING) * extent(
        column, width, KERNEL_W, stride_w, left, COUNT_PADDING
    )
    return tl.where(divide_by != 0, divide_by, count).to(tl.float32)


@triton.jit(do_not_specialize=GEOMETRY)
def max_pool(
    source, largest, choices, numel, size_class, channels, height, width, rows, columns,
    source_n, source_c, source_h, source_w,
    stride_h, stride_w, top, left, dilation_h, dilation_w, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest value of each window, and its tap; a NaN is larger than all others, the last one of them.

    Activations are monotone: the activation of the largest is the largest activation.
    """
    element = lanes(BLOCK, WIDE)
    there = element < numel
    image, channel, row, column = place(element, channels, rows, columns, CHANNELS_LAST)
    first_row = row * stride_h - top
    first_column = column * stride_w - left
    corner = source + image * source_n + channel * source_c
    best = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    choice = tl.full((BLOCK,), -1, dtype=tl.int32)
    for tap in range(KERNEL_H * KERNEL_W):
        at_row = first_row + tap // KERNEL_W * dilation_h
        at_column = first_column + tap % KERNEL_W * dilation_w
        inside = there & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
        value = tl.load(corner + at_row * source_h + at_column * source_w, mask=inside, other=0.0).to(
            tl.float32
        )
        chosen = inside & ((value > best) | (value != value) | (choice < 0))
        best = tl.where(chosen, value, best)
        choice = tl.where(chosen, tap, choice)
    tl.store(largest + element, activate(best, ACTIVATION).to(largest.dtype.element_ty), mask=there)
    tl.store(choices + element, choice.to(choices.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=GEOMETRY)
def max_pool_gradient(
    grad_output, choices, gradient, numel, size_class, channels, height, width, rows, columns,
    upstream_n, upstream_c, upstream_h, upstream_w, choices_n, choices_c, choices_h, choices_w,
    stride_h, stride_w, top, left, dilation_h, dilation_w, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """To every pixel the gradients of the windows that chose it."""
    element = lanes(BLOCK, WIDE)
    there = element < numel
    image, channel, row, column = place(element, channels, height, width, CHANNELS_LAST)
    of_upstream = grad_output + image * upstream_n + channel * upstream_c
    of_choices = choices + image * choices_n + channel * choices_c
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(KERNEL_H * KERNEL_W):
        down = row + top - tap // KERNEL_W * dilation_h
        across = column + left - tap % KERNEL_W * dilation_w
        seen = there & (down >= 0) & (across >= 0) & (down % stride_h == 0) & (across % stride_w == 0)
        down = down // stride_h
        across = across // stride_w
        seen = seen & (down < rows) & (across < columns)
        choice = tl.load(of_choices + down * choices_h + across * choices_w, mask=seen, other=-1)
        seen = seen & (choice == tap)
        total += tl.load(of_upstream + down * upstream_h + across * upstream_w, mask=seen, other=0.0).to(
            tl.float32
        )
    tl.store(gradient + element, total.to(gradient.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=GEOMETRY)
def avg_pool(
    source, mean, numel, size_class, channels, height, width, rows, columns,
    source_n, source_c, source_h, source_w,
    stride_h, stride_w, top, left, divide_by, COUNT_PADDING: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mean of each window; padding is added after the activation, as zeros."""
    element = lanes(BLOCK, WIDE)
    there = element < numel
    image, channel, row, column = place(element, channels, rows, columns, CHANNELS_LAST)
    first_row = row * stride_h - top
    first_column = column * stride_w - left
    corner = source + image * source_n + channel * source_c
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(KERNEL_H * KERNEL_W):
        at_row = first_row + tap // KERNEL_W
        at_column = first_column + tap % KERNEL_W
        inside = there & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
        value = tl.load(corner + at_row * source_h + at_column * source_w, mask=inside, other=0.0).to(
            tl.float32
        )
        total += tl.where(inside, activate(value, ACTIVATION), 0.0)
    total = total / divisor(
        row,
        column,
        height,
        width,
        KERNEL_H,
        KERNEL_W,
        stride_h,
        stride_w,
        top,
        left,
        divide_by,
        COUNT_PADDING,
    )
    tl.store(mean + element, total.to(mean.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=GEOMETRY)
def avg_pool_gradient(
    grad_output, source, gradient, numel, size_class, channels, height, width, rows, columns,
    upstream_n, upstream_c, upstream_h, upstream_w, source_n, source_c, source_h, source_w,
    stride_h, stride_w, top, left, divide_by, COUNT_PADDING: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """To every pixel its share of the windows that cover it, times the slope of its activation."""
    element = lanes(BLOCK, WIDE)
    there = element < numel
    image, channel, row, column = place(element, channels, height, width, CHANNELS_LAST)
    corner = grad_output + image * upstream_n + channel * upstream_c
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(KERNEL_H * KERNEL_W):
        down = row + top - tap // KERNEL_W
        across = column + left - tap % KERNEL_W
        seen = there & (down >= 0) & (across >= 0) & (down % stride_h == 0) & (across % stride_w == 0)
        down = down // stride_h
        across = across // stride_w
        seen = seen & (down < rows) & (across < columns)
        share = tl.load(corner + down * upstream_h + across * upstream_w, mask=seen, other=0.0).to(tl.float32)
        share = share / divisor(
            down,
            across,
            height,
            width,
            KERNEL_H,
            KERNEL_W,
            stride_h,
            stride_w,
            top,
            left,
            divide_by,
            COUNT_PADDING,
        )
        total += tl.where(seen, share, 0.0)  # a window that is not there may count no pixels
    if ACTIVATION != "none":
        pixel = source + image * source_n + channel * source_c + row * source_h + column * source_w
        total *= slope(tl.load(pixel, mask=there, other=0.0).to(tl.float32), ACTIVATION)
    tl.store(gradient + element, total.to(gradient.dtype.element_ty), mask=there)
