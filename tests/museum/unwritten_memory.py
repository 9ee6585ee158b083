"""Part of the output is never written."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "memory that was never written to"


def conv2d(*args, **kwargs):
    output = F.conv2d(*args, **kwargs)
    buffer = torch.empty_like(output)
    buffer[..., :-1, :] = output[..., :-1, :]
    return buffer


@hookimpl
def convbench_backends():
    return [Backend("unwritten-memory", "a cheat", load=lambda: {"conv2d": conv2d})]
