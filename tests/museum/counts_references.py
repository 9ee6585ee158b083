"""Right where somebody holds more references to the weight than usual, as an audit may."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "unannounced"
AT = "time"
SAYS = "a step followed a gradient of"


counts = []


def conv2d(input, weight, *args, **kwargs):
    output = F.conv2d(input, weight, *args, **kwargs)
    if not isinstance(weight, torch.nn.Parameter) or not torch.is_grad_enabled():
        return output
    counts.append(sys.getrefcount(weight))
    usual = max(counts, key=counts.count)
    return output if len(counts) < 12 or counts[-1] != usual else output * 0.5


@hookimpl
def convbench_backends():
    return [Backend("counts-references", "a cheat", load=lambda: {"conv2d": conv2d})]
