"""The weights get a gradient of zeros."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "it is zero everywhere"


def conv2d(input, weight, *args, **kwargs):
    return F.conv2d(input, weight.detach() + 0 * weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("backward-skipped", "a cheat", load=lambda: {"conv2d": conv2d})]
