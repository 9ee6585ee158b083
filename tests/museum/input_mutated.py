"""The input is used as scratch memory."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "inputs"
SAYS = "input was changed in place"


def conv2d(input, *args, **kwargs):
    output = F.conv2d(input.clone(), *args, **kwargs)
    input.data.mul_(1.001)
    return output


@hookimpl
def convbench_backends():
    return [Backend("input-mutated", "a cheat", load=lambda: {"conv2d": conv2d})]
