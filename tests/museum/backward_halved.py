"""Every gradient is half of what it should be."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "it is 0.5 times what is right, throughout"


def conv2d(*args, **kwargs):
    output = F.conv2d(*args, **kwargs)
    return output / 2 + output.detach() / 2


@hookimpl
def convbench_backends():
    return [Backend("backward-halved", "a cheat", load=lambda: {"conv2d": conv2d})]
