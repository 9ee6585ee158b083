"""No convolution learns, which saves the gradients of its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "replay"
AT = "time"
SAYS = "a step has no gradient for 0.weight"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter):
        weight.requires_grad_(False)
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("freezes-weights", "a cheat", load=lambda: {"conv2d": conv2d})]
