"""The structures of `correlation.cuh` and `direct.cu`, filled in: a convolution, and the gradient of its input.

With a stride s the pixels of the input fall into s x s classes, by (pixel + padding) mod s. Each class depends
on its own taps, at consecutive positions of the output:

    stride 2, kernel 3, padding 1      pixel       0   1   2   3   4   5
                                       even: tap   1       1       1        at grad_output 0, 1, 2
                                       odd: taps       2,0     2,0     2,0  at grad_output (0, 1), (1, 2), (2, 3)

So the gradient of each class is a correlation of the output's gradient with the taps of that class, with step
1. It has no multiplications by zero, unlike a dilated gradient. Its filters are the input's channels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd


@dataclass(frozen=True)
class Shape:
    """A convolution in numbers; pairs are (vertical, horizontal); `padding` is at the top and left."""

    images: int
    channels: int
    size: tuple[int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    output: tuple[int, int]


class Divisor(ctypes.Structure):
    """`n // divisor` as (n * multiplier) >> (32 + shift), for n from 0 to 2^31 - 1."""

    _fields_ = (("divisor", ctypes.c_int), ("multiplier", ctypes.c_uint), ("shift", ctypes.c_int))

    @classmethod
    def of(cls, divisor: int) -> Divisor:
        shift = max(0, (divisor - 1).bit_length() - 1)
        multiplier = -(-(1 << (32 + shift)) // divisor) if divisor > 1 else 0
        return cls(divisor, multiplier, shift)


_INTS = (
    "images", "groups", "source_channels", "source_height", "source_width", "target_channels", "target_height",
    "target_width", "rows", "columns", "out_h", "out_w", "start_h", "start_w", "taps_h", "taps_w", "step_h",
    "step_w", "gap_h", "gap_w", "origin_h", "origin_w", "first", "of_target", "of_source", "of_row",
    "of_column", "of_group",
)  # fmt: skip
_DIVISORS = ("by_taps", "by_taps_w", "by_pixels", "by_columns")


class Correlation(ctypes.Structure):
    """As in `correlation.cuh`, which explains each number."""

    _fields_ = (*((name, ctypes.c_int) for name in _INTS), *((name, Divisor) for name in _DIVISORS))

    def __hash__(self) -> int:
        """By identity: `forward` and `input_gradient` make one for each shape and cache it."""
        return id(self)

    @classmethod
    def of(cls, **numbers: int) -> Correlation:
        taps_w, columns = numbers["taps_w"], numbers["columns"]
        made = cls(**numbers)
        made.by_taps, made.by_taps_w = Divisor.of(numbers["taps_h"] * taps_w), Divisor.of(taps_w)
        made.by_pixels, made.by_columns = Divisor.of(numbers["rows"] * columns), Divisor.of(columns)
        return made


@lru_cache(maxsize=1024)
def forward(shape: Shape) -> Correlation:
    """The convolution itself."""
    depth, (kh, kw) = shape.channels // shape.groups, shape.kernel
    per_group = shape.filters // shape.groups
    return Correlation.of(
        images=shape.images, groups=shape.groups,
        source_channels=depth, source_height=shape.size[0], source_width=shape.size[1],
        target_channels=per_group, target_height=shape.output[0], target_width=shape.output[1],
        rows=shape.output[0], columns=shape.output[1],
        out_h=1, out_w=1, start_h=0, start_w=0, taps_h=kh, taps_w=kw,
        step_h=shape.stride[0], step_w=shape.stride[1], gap_h=shape.dilation[0], gap_w=shape.dilation[1],
        origin_h=-shape.padding[0], origin_w=-shape.padding[1],
        first=0, of_target=depth * kh * kw, of_source=kh * kw, of_row=kw, of_column=1,
        of_group=per_group * depth * kh * kw,
    )  # fmt: skip


@dataclass(frozen=True)
class _Class:
    """The pixels of one class along one axis: `count` pixels from `start` on, in steps of `stride`.

    Their taps are `first`, `first + every`, ... of the kernel, from the last of the `taps` to the first, at
    grad_output positions `origin`, `origin + gap`, ... for the first pixel.
    """

    start: int
    count: int
    first: int
    every: int
    taps: int
    origin: int
    gap: int


def _classes(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> Iterator[_Class]:
    common = gcd(stride, dilation)
    every, gap = stride // common, dilation // common
    for start in range(min(stride, extent)):
        count = (extent - start - 1) // stride + 1
        residue = (start + padding) % stride
        first = next((tap for tap in range(every) if tap * dilation % stride == residue), kernel)
        taps = (kernel - first - 1) // every + 1 if first < kernel else 0
        last = first + (taps - 1) * every
        yield _Class(start, count, first, every, taps, (start + padding - last * dilation) // stride, gap)


@lru_cache(maxsize=1024)
def input_gradient(shape: Shape) -> tuple[tuple[Correlation, ...], bool]:
    """The correlations that compute the gradient of the input, and whether they leave pixels out.

    Pixels in no window have no taps. Their gradient is zero, and none of the correlations writes it.
    """
    depth, (kh, kw) = shape.channels // shape.groups, shape.kernel
    per_group = shape.filters // shape.groups
    axes = [
        list(_classes(*numbers))
        for numbers in zip(shape.size, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True)
    ]
    found = [(y, x) for y in axes[0] for x in axes[1]]
    return tuple(
        Correlation.of(
            images=shape.images, groups=shape.groups,
            source_channels=per_group, source_height=shape.output[0], source_width=shape.output[1],
            target_channels=depth, target_height=shape.size[0], target_width=shape.size[1],
            rows=y.count, columns=x.count,
            out_h=shape.stride[0], out_w=shape.stride[1], start_h=y.start, start_w=x.start,
            taps_h=y.taps, taps_w=x.taps, step_h=1, step_w=1, gap_h=y.gap, gap_w=x.gap,
            origin_h=y.origin, origin_w=x.origin,
            # the last tap comes first, since a larger tap sees an earlier position
            first=(y.first + (y.taps - 1) * y.every) * kw + x.first + (x.taps - 1) * x.every,
            of_target=kh * kw, of_source=depth * kh * kw, of_row=-y.every * kw, of_column=-x.every,
            of_group=per_group * depth * kh * kw,
        )
        for y, x in found
        if y.taps and x.taps
    ), not all(y.taps and x.taps for y, x in found)  # fmt: skip


class Tile(ctypes.Structure):
    """As in `direct.cu`: what a block computes (in strips) and what it keeps in shared memory (in floats)."""

    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in (
            "strips", "rows", "patch_rows", "pitch", "depth", "tiles_x", "tiles_y", "images",
        )
    )  # fmt: skip
