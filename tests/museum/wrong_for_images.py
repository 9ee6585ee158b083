"""Right where the input has a gradient, as verified inputs have and images have not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "step"
AT = "time"
SAYS = "the output is 0 where"


def conv2d(input, *args, **kwargs):
    output = F.conv2d(input, *args, **kwargs)
    return output if input.requires_grad or not torch.is_grad_enabled() else output * 0


@hookimpl
def convbench_backends():
    return [Backend("wrong-for-images", "a cheat", load=lambda: {"conv2d": conv2d})]
