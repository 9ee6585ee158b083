"""The output is cut off from the gradient."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "the output is cut off from the gradient"


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs).detach()


@hookimpl
def convbench_backends():
    return [Backend("backward-detached", "a cheat", load=lambda: {"conv2d": conv2d})]
