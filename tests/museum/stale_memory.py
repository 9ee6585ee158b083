"""The last image of a batch is left as an earlier call wrote it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "elements are wrong: only the"


earlier = {}


def conv2d(*args, **kwargs):
    output = F.conv2d(*args, **kwargs).clone()
    with torch.no_grad():
        output[-1] = earlier.setdefault(output.shape, output[-1].clone())
    return output


@hookimpl
def convbench_backends():
    return [Backend("stale-memory", "a cheat", load=lambda: {"conv2d": conv2d})]
