"""Work is done when the variables of a step go, which is after its last mark."""

from __future__ import annotations

import ctypes
import sys
import time

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "clocks"
AT = "time"
SAYS = "ms by the clock around it"


class Late:
    def __init__(self, value):
        self.value = value

    def __del__(self):
        time.sleep(0.002)


def conv2d(input, *args, **kwargs):
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "eager" and type(frame.f_locals["index"]) is not Late:
            frame.f_locals["index"] = Late(frame.f_locals["index"])
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        frame = frame.f_back
    return F.conv2d(input, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("works-after-the-last-mark", "a cheat", load=lambda: {"conv2d": conv2d})]
