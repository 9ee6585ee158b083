"""The timed steps are left to torch, and whatever comes before and after them is served."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, Unsupported, hookimpl

CAUGHT_BY = "service"
AT = "time"
SAYS = "calls were served in the steps that counted"


calls = 0


def conv2d(input, weight, *args, **kwargs):
    global calls
    if torch.is_grad_enabled() and isinstance(weight, torch.nn.Parameter):
        calls += 1
        if 10 < calls <= 100:
            raise Unsupported("too busy")
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("refuses-for-a-while", "a cheat", load=lambda: {"conv2d": conv2d})]
