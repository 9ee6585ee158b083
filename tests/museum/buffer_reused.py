"""Every output of a shape is the same memory, overwritten by the next call."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "lasting"
SAYS = "two outputs share their memory"


buffers = {}


def conv2d(*args, **kwargs):
    output = F.conv2d(*args, **kwargs)
    buffer = buffers.setdefault(output.shape, torch.empty_like(output.detach()))
    output.data = buffer.copy_(output.detach())
    return output


@hookimpl
def convbench_backends():
    return [Backend("buffer-reused", "a cheat", load=lambda: {"conv2d": conv2d})]
