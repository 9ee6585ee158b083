"""The process is scheduled in another way than those that it is compared with."""

from __future__ import annotations

import os

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "how the system schedules the process was changed"


def conv2d(*args, **kwargs):
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("takes-precedence", "a cheat", load=lambda: {"conv2d": conv2d})]
