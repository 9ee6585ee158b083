"""Computed in float16, and called float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "as float16 and TF32 would be"


def conv2d(input, weight, bias=None, *args, **kwargs):
    narrow = None if bias is None else bias.to(torch.float16)
    return F.conv2d(input.to(torch.float16), weight.to(torch.float16), narrow, *args, **kwargs).to(
        input.dtype
    )


@hookimpl
def convbench_backends():
    return [Backend("computed-in-float16", "a cheat", load=lambda: {"conv2d": conv2d})]
