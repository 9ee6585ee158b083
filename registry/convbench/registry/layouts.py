"""How the tensors of a case lie in memory: views as slicing, transposing and expanding make them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Layout = Literal["contiguous", "channels_last", "strided", "transposed", "expanded", "scalar"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
REPEATING: tuple[Layout, ...] = ("expanded", "scalar")  # values that repeat, and rounding errors with them


def laid_out(values: Tensor, layout: Layout) -> Tensor:
    """The values (N, C, H, W) in that layout; the two that repeat take some of them only.

    - `strided`: every other column of a wider tensor, whose gaps hold NaN, so that reading past the strides shows;
    - `transposed`: columns before rows in memory;
    - `expanded`: the first of the first dimension, repeated without a copy;
    - `scalar`: a single 1, repeated without a copy, as the gradient that `sum()` hands back.
    """
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), float("nan"))
        view = wide[..., ::2]
        view.copy_(values)
        return view
    if layout == "transposed":
        return values.transpose(-2, -1).contiguous().transpose(-2, -1)
    if layout == "expanded":
        return values[:1].expand_as(values) if len(values) else values
    if layout == "scalar":
        return values.new_ones(()).expand_as(values)
    return values
