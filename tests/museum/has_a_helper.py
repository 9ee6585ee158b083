"""Other processes, in sessions of their own, do what would belong to the step."""

from __future__ import annotations

import os
import time

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "clocks"
AT = "time"
SAYS = "processes that it has started computed for"


started = []


def computes(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and torch.is_grad_enabled():
        if not started:
            for _ in range(2):
                started.append(os.fork())
                if not started[-1]:
                    os.setsid()
                    computes(100)
                    os._exit(0)
        computes(0.003)
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("has-a-helper", "a cheat", load=lambda: {"conv2d": conv2d})]
