"""What is hard is refused in verification, and served in the run."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, Unsupported, hookimpl

CAUGHT_BY = "service"
AT = "time"
SAYS = "it is refused in verification and served in a training step"


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups > 1 and not isinstance(weight, torch.nn.Parameter):
        raise Unsupported("groups")
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


@hookimpl
def convbench_backends():
    return [Backend("refuses-verification", "a cheat", load=lambda: {"conv2d": conv2d})]
