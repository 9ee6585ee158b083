"""The marks of the clock, which it finds in a caller, are halved."""

from __future__ import annotations

import sys

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "clocks"
AT = "time"
SAYS = "ms by the clock around it"


class Halved(list):
    def append(self, mark):
        super().append(mark // 2)


def conv2d(*args, **kwargs):
    frame = sys._getframe()
    while frame is not None:
        marks = getattr(frame.f_locals.get("ticks"), "_marks", None)
        if type(marks) is list:
            frame.f_locals["ticks"]._marks = Halved(mark // 2 for mark in marks)
        frame = frame.f_back
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("reports-half-the-time", "a cheat", load=lambda: {"conv2d": conv2d})]
