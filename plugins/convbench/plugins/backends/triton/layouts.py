"""How tensors lie in memory, as far as kernels are told: by strides, and whether channels are innermost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OFFSETS = 2**30  # from which offsets are 64 bits wide: half of what 32 hold, since masked lanes reach beyond


def channels_last(images: Tensor) -> bool:
    """Whether (N, C, H, W) lies in memory as N, H, W, C, densely."""
    return bool(images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last))


def new_images(like: Tensor, shape: Sequence[int], innermost: bool) -> Tensor:
    """An empty, dense (N, C, H, W), with the channels innermost or the columns; dtype and device are `like`'s."""
    memory_format = torch.channels_last if innermost else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=memory_format)


def wide(*tensors: Tensor) -> bool:
    """Whether 32 bits are too few for an offset into one of them."""
    return any(
        sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        >= OFFSETS
        for tensor in tensors
    )
