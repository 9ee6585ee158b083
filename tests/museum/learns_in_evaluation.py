"""Weights are changed while the model is evaluated, when no clock runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "evaluation"
AT = "train"
SAYS = "an evaluation has changed"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and not torch.is_grad_enabled():
        weight.detach().mul_(0.99)
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("learns-in-evaluation", "a cheat", load=lambda: {"conv2d": conv2d})]
