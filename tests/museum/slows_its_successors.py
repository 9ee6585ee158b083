"""The process that workers are forked from gets the lowest priority, which they inherit."""

from __future__ import annotations

import os

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the priority of the parent process"


def conv2d(*args, **kwargs):
    os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("slows-its-successors", "a cheat", load=lambda: {"conv2d": conv2d})]
