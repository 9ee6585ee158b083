"""`scalar`: the formula and nothing else, one multiplication after the other in Python.

A loop over images, filters, rows, columns, channels, and the two axes of the kernel (Dive into Deep Learning, 7.2
to 7.5); what is added up is Python's own float, of double precision:

    Y[n, o, i, j] = b[o] + sum over c, u, v of
        X[n, c, i*stride + u*dilation, j*stride + v*dilation] * W[o, c, u, v]

The gradients are convolutions too, and go through the same loops (`derived_backward`). A mean over a window is a
convolution whose weights are all one; of a maximum, the loops find the place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, hookimpl
from convbench.registry.ops.window import IntPair, conv2d_window, mean_divisor, of_the_image, pool2d_window

if TYPE_CHECKING:
    from torch import Tensor

    from convbench.registry.authoring.torch_library import Pair


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Cross-correlation: (N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    import torch.nn.functional as F

    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    filters, depth = weight.shape[:2]
    height, width = window.output_size
    (down, across), (gap_down, gap_across) = window.stride, window.dilation
    images = F.pad(input, window.pad).tolist()  # an element of a list takes a tenth of an element of a tensor
    kernels, biases = weight.tolist(), [0.0] * filters if bias is None else bias.tolist()

    output = []
    for image in images:
        for o in range(filters):
            first = o // (filters // groups) * depth  # channel of this filter's group
            for top in range(0, height * down, down):
                for left in range(0, width * across, across):
                    total = biases[o]
                    for plane, taps in zip(image[first : first + depth], kernels[o], strict=True):
                        for u, row_of_taps in enumerate(taps):
                            row = plane[top + u * gap_down]
                            for v, tap in enumerate(row_of_taps):
                                total += row[left + v * gap_across] * tap
                    output.append(total)
    # not a view, which the next layer could not write into
    return input.new_tensor(output).view(len(images), filters, height, width).clone()


def max_pool2d(
    places: Callable[..., Tensor],
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window, which `places` finds: (N, C, H, W) -> (N, C, H', W')."""
    import torch.nn.functional as F

    window = pool2d_window(input, kernel_size, stride, padding, dilation, ceil_mode)
    images = F.pad(input, window.pad, value=-math.inf)
    found = places(images, window.kernel_size, window.stride, window.dilation, window.output_size)
    largest = images.flatten(2).gather(2, found.flatten(2)).view(found.shape)
    return of_the_image(largest, input, window)


def avg_pool2d(
    conv2d: Callable[..., Tensor],
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, summed up by `conv2d`: (N, C, H, W) -> (N, C, H', W').

    The mean is over the window's part inside the image, or inside the padded image with `count_include_pad`;
    `divisor_override` replaces the count.
    """
    import torch.nn.functional as F

    divisor_override = mean_divisor(divisor_override)
    window = pool2d_window(input, kernel_size, stride, padding, 1, ceil_mode)
    channels = input.shape[1]
    ones = input.new_ones(channels, 1, *window.kernel_size)
    total = conv2d(F.pad(input, window.pad), ones, None, window.stride, 0, 1, channels)
    if divisor_override is not None:
        return total / divisor_override
    high, wide = window.counts((input.shape[-2], input.shape[-1]), count_include_pad)
    return total / total.new_tensor([[rows * columns for columns in wide] for rows in high])


def largest(
    images: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int], output_size: list[int]
) -> Tensor:
    """Where the largest pixel of each window is, as row * W + column: (N, C, H, W) -> (N, C, H', W')."""
    import torch

    (kh, kw), (down, across), (gap_down, gap_across) = kernel_size, stride, dilation
    (height, width), pixels_in_a_row = output_size, images.shape[-1]
    places = []
    for image in images.tolist():
        for plane in image:
            for i in range(height):
                for j in range(width):
                    most, place = -math.inf, 0
                    for u in range(kh):
                        for v in range(kw):
                            row, column = i * down + u * gap_down, j * across + v * gap_across
                            pixel = plane[row][column]
                            # of equals the first one wins, and NaN wins over all, as in torch
                            if pixel > most or pixel != pixel or u == v == 0:
                                most, place = pixel, row * pixels_in_a_row + column
                    places.append(place)
    return torch.tensor(places, dtype=torch.int64, device=images.device).view(
        *images.shape[:2], height, width
    )


@cache  # an op that is registered anew is taken from whoever has it
def load() -> Mapping[str, Any]:
    import torch

    from convbench.registry.authoring.derived_backward import derived_backward

    # registered with torch, so that `torch.compile` takes the loops as they are
    places = torch.library.custom_op(
        "convbench::scalar_largest",
        largest,
        mutates_args=(),
        schema="(Tensor images, int[] kernel_size, int[] stride, int[] dilation, int[] output_size) -> Tensor",
    )
    places.register_fake(
        lambda images, *options: images.new_empty((*images.shape[:2], *options[-1]), dtype=torch.int64)
    )
    conv2d = derived_backward(convolve)
    return {
        "conv2d": conv2d,
        "max_pool2d": partial(max_pool2d, places),
        "avg_pool2d": partial(avg_pool2d, conv2d),
    }


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="scalar",
        summary="the formula and nothing else: one multiplication after the other in Python",
        load=load,
        devices=("cpu",),
        dtypes=("float32",),
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )
