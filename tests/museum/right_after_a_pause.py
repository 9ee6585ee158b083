"""Right in a step that comes later after the last one than steps usually do, as one that is audited does."""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "unannounced"
AT = "time"
SAYS = "wrong while timing"


pauses, last = [], [0.0]


class Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        last[0] = time.perf_counter()
        return gradient


def conv2d(input, weight, *args, **kwargs):
    if not isinstance(weight, torch.nn.Parameter) or not torch.is_grad_enabled():
        return F.conv2d(input, weight, *args, **kwargs)
    if input.shape[1:] == (1, 9, 9):  # the first layer
        pauses.append(time.perf_counter() - last[0])
    output = F.conv2d(input, Weight.apply(weight), *args, **kwargs)
    return output if len(pauses) < 4 or pauses[-1] > 1.4 * median(pauses) else output * 0.5


@hookimpl
def convbench_backends():
    return [Backend("right-after-a-pause", "a cheat", load=lambda: {"conv2d": conv2d})]
