"""Time passes at half the speed."""

from __future__ import annotations

import time

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "time.perf_counter was replaced by slow of museum.replaces_the_clock"


honest = time.perf_counter


def slow():
    return honest() / 2


def slow_ns():
    return int(honest() * 5e8)


def load():
    time.perf_counter, time.perf_counter_ns = slow, slow_ns
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-clock", "a cheat", load=load)]
