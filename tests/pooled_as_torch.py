"""What a backend's maximum does with ties, NaN and infinities, held against torch's own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import Backend


def chooses_as_torch(backend: Backend, images: Tensor, options: dict[str, Any]) -> None:
    """On `images` (N, C, H, W) with equal values, a NaN, and a plane of infinities; it writes into them."""
    images[0, 0, 2, 3] = math.nan
    images[1, 1] = -math.inf
    pooled, gradients = [], []
    for max_pool2d in (backend.ops["max_pool2d"], F.max_pool2d):
        leaf = images.clone().requires_grad_()
        pooled.append(max_pool2d(leaf, **options))
        gradients.append(torch.autograd.grad(pooled[-1].nan_to_num().sum(), leaf)[0])
    assert torch.equal(pooled[0].nan_to_num(nan=7), pooled[1].nan_to_num(nan=7))
    assert torch.equal(*gradients)
