"""What it serves in verification is left to torch in the run."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, Unsupported, hookimpl

CAUGHT_BY = "service"
AT = "time"
SAYS = "it is served in verification and refused in a training step"


def conv2d(input, weight, *args, **kwargs):
    if torch.is_grad_enabled() and isinstance(weight, torch.nn.Parameter):
        raise Unsupported("too busy")
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("refuses-work", "a cheat", load=lambda: {"conv2d": conv2d})]
