"""A layer's weight is pointed to memory of the plugin's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "model"
AT = "time"
SAYS = "the memory of weight changed"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter):
        weight.data = weight.data.clone()
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("swaps-weights", "a cheat", load=lambda: {"conv2d": conv2d})]
