"""The clock is replaced when timing begins."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
AT = "time"
SAYS = "time.perf_counter_ns was replaced by stopped of museum.stops_the_clock_later"


def stopped():
    return 0


def conv2d(input, weight, *args, **kwargs):
    if torch.is_grad_enabled() and isinstance(weight, torch.nn.Parameter):
        time.perf_counter_ns = stopped
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("stops-the-clock-later", "a cheat", load=lambda: {"conv2d": conv2d})]
