"""The weight is changed a little at every call."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "inputs"
SAYS = "weight was changed in place"


def conv2d(input, weight, *args, **kwargs):
    output = F.conv2d(input, weight.clone(), *args, **kwargs)
    weight.data.mul_(1.001)
    return output


@hookimpl
def convbench_backends():
    return [Backend("weight-mutated", "a cheat", load=lambda: {"conv2d": conv2d})]
