"""Right for plain tensors, wrong for a layer's parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "step"
AT = "time"
SAYS = "the output is 0 where"


def conv2d(input, weight, *args, **kwargs):
    return F.conv2d(input, weight, *args, **kwargs) * (not isinstance(weight, torch.nn.Parameter))


@hookimpl
def convbench_backends():
    return [Backend("wrong-for-parameters", "a cheat", load=lambda: {"conv2d": conv2d})]
