"""Zeros of the right shape."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "it is zero everywhere"


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * 0


@hookimpl
def convbench_backends():
    return [Backend("zeros", "a cheat", load=lambda: {"conv2d": conv2d})]
