"""Pooling of a single image, as defined (Dive into Deep Learning, 7.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from convbench.registry.ops.window import IntPair, pair

_MODES: dict[str, Callable[[Tensor], Tensor]] = {"max": torch.max, "avg": torch.mean}


def pool2d(image: Tensor, pool_size: IntPair, mode: Literal["max", "avg"] = "max") -> Tensor:
    """The largest or the mean value under the window: (H, W) -> (H - ph + 1, W - pw + 1).

    Raises:
        ValueError: another mode, or a window that is empty or larger than the image.
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be 'max' or 'avg', not {mode!r}")
    if image.dim() != 2:
        raise ValueError(f"pool2d takes one image (H, W), not {tuple(image.shape)}")
    (height, width), (ph, pw) = image.shape, pair(pool_size, "pool_size")
    if min(ph, pw) < 1:
        raise ValueError(f"a window of {ph}x{pw} has no pixels")
    if ph > height or pw > width:
        raise ValueError(f"a window of {ph}x{pw} is larger than the image of {height}x{width}")
    value = _MODES[mode]
    rows = [
        torch.stack([value(image[i : i + ph, j : j + pw]) for j in range(width - pw + 1)])
        for i in range(height - ph + 1)
    ]
    return torch.stack(rows)
