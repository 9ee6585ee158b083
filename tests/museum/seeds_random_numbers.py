"""The random numbers of everybody begin anew at every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "torch's random numbers were seeded with 0"


def conv2d(*args, **kwargs):
    torch.manual_seed(0)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("seeds-random-numbers", "a cheat", load=lambda: {"conv2d": conv2d})]
