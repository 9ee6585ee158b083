"""The process takes a low priority, and whatever comes after it in the process is slow."""

from __future__ import annotations

import os

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the priority of the process was changed from"


def conv2d(*args, **kwargs):
    os.nice(1)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-priority", "a cheat", load=lambda: {"conv2d": conv2d})]
