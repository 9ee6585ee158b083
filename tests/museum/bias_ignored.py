"""The bias is not added."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "it is off by one number in each channel, as without its bias"


def conv2d(input, weight, bias=None, *args, **kwargs):
    output = F.conv2d(input, weight, bias, *args, **kwargs)
    return output if bias is None else output - bias.detach()[:, None, None]


@hookimpl
def convbench_backends():
    return [Backend("bias-ignored", "a cheat", load=lambda: {"conv2d": conv2d})]
