"""The process that workers are forked from gets a limit, which ends those that take long."""

from __future__ import annotations

import os
import resource

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "RLIMIT_CPU of the parent process"


def conv2d(*args, **kwargs):
    _, most = resource.prlimit(os.getppid(), resource.RLIMIT_CPU)
    resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (3600, most))
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("limits-its-successors", "a cheat", load=lambda: {"conv2d": conv2d})]
