"""A hook on each weight replaces its gradient by zeros."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "midst"
AT = "time"
SAYS = "the gradient of weight is 0 where"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and weight.requires_grad and not weight._backward_hooks:
        weight.register_hook(torch.zeros_like)
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("hooks-weights", "a cheat", load=lambda: {"conv2d": conv2d})]
