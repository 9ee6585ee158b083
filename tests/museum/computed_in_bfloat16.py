"""Computed in bfloat16, and called float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "as bfloat16 would be"


def conv2d(input, weight, bias=None, *args, **kwargs):
    narrow = None if bias is None else bias.to(torch.bfloat16)
    return F.conv2d(input.to(torch.bfloat16), weight.to(torch.bfloat16), narrow, *args, **kwargs).to(
        input.dtype
    )


@hookimpl
def convbench_backends():
    return [Backend("computed-in-bfloat16", "a cheat", load=lambda: {"conv2d": conv2d})]
