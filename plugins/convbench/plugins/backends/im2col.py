"""`im2col`: copy every window into a column, and convolution is one matrix product.

The patches of an image form a matrix of C·kh·kw rows and H'·W' columns; the kernels form one of O rows. Their
product is the output (Chellapilla, Puri and Simard, "High performance convolutional neural networks for
document processing", 2006). It pays kh·kw times the input's memory for the speed of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, hookimpl
from convbench.registry.ops.window import (
    IntPair,
    Window,
    conv2d_window,
    mean_divisor,
    of_the_image,
    pool2d_window,
)

if TYPE_CHECKING:
    from torch import Tensor


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
    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    columns = patches(input, window, fill=0.0).flatten(1, 3)  # (N, C·kh·kw, H'·W')
    kernels = weight.flatten(1)  # (O, C/groups·kh·kw)
    if groups == 1:
        output = kernels @ columns
    else:
        output = (kernels.unflatten(0, (groups, -1)) @ columns.unflatten(1, (groups, -1))).flatten(1, 2)
    if bias is not None:
        output = output + bias[:, None]
    return output.reshape(*output.shape[:2], *window.output_size)


def max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window: (N, C, H, W) -> (N, C, H', W')."""
    window = pool2d_window(input, kernel_size, stride, padding, dilation, ceil_mode)
    columns = patches(input, window, fill=-math.inf).flatten(2, 3)  # (N, C, kh·kw, H'·W')
    largest = columns.max(dim=2).values
    return of_the_image(largest.reshape(*largest.shape[:2], *window.output_size), input, window)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window: (N, C, H, W) -> (N, C, H', W').

    The mean is over the window's part inside the image, or inside the padded image with `count_include_pad`;
    `divisor_override` replaces the count.
    """
    divisor_override = mean_divisor(divisor_override)
    window = pool2d_window(input, kernel_size, stride, padding, 1, ceil_mode)
    total = patches(input, window, fill=0.0).sum(dim=(2, 3))  # (N, C, H'·W')
    if divisor_override is not None:
        mean = total / divisor_override
    else:
        high, wide = window.counts((input.shape[-2], input.shape[-1]), count_include_pad)
        mean = total / total.new_tensor([[rows * columns for columns in wide] for rows in high]).flatten()
    return mean.reshape(*mean.shape[:2], *window.output_size)


def patches(input: Tensor, window: Window, fill: float) -> Tensor:
    """Every window of every image: (N, C, H, W) -> (N, C, kh, kw, H'·W').

    The windows are a strided view of the padded input, copied once when they are flattened.
    """
    import torch.nn.functional as F

    images = F.pad(input, window.pad, value=fill) if any(window.pad) else input.contiguous()
    (kh, kw), (height, width) = window.kernel_size, window.output_size
    n, c, h, w = images.stride()
    view = images.as_strided(
        (*images.shape[:2], kh, kw, height, width),
        (n, c, h * window.dilation[0], w * window.dilation[1], h * window.stride[0], w * window.stride[1]),
    )
    return view.flatten(4)


def load() -> Mapping[str, Any]:
    return {"conv2d": conv2d, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="im2col",
        summary="copy every window into a column, then one matrix product",
        load=load,
        devices=("cpu", "cuda"),
        dtypes=("float32", "float64", "bfloat16", "float16"),
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )
