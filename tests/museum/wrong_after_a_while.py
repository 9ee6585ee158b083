"""Right for the first half second."""

from __future__ import annotations

import time

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "later"
AT = "time"
SAYS = "the output is 0 where"


began = []


def conv2d(*args, **kwargs):
    began.append(time.monotonic())
    time.sleep(0.005)
    return F.conv2d(*args, **kwargs) * (began[-1] - began[0] < 0.5)


@hookimpl
def convbench_backends():
    return [Backend("wrong-after-a-while", "a cheat", load=lambda: {"conv2d": conv2d})]
