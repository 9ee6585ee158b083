"""Right where gradients are recorded, wrong in evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "step"
AT = "train"
SAYS = "the output is 0 where"


def conv2d(input, weight, *args, **kwargs):
    return F.conv2d(input, weight, *args, **kwargs) * torch.is_grad_enabled()


@hookimpl
def convbench_backends():
    return [Backend("wrong-in-evaluation", "a cheat", load=lambda: {"conv2d": conv2d})]
