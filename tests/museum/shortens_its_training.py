"""The seconds of a training, which it finds in a caller, are halved again and again."""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "clocks"
AT = "train"
SAYS = "s by that of its parent"


def conv2d(*args, **kwargs):
    time.sleep(0.03 * torch.is_grad_enabled())
    frame = sys._getframe()
    while frame is not None:
        pause = frame.f_locals.get("pause")
        if frame.f_code.co_name == "train" and pause is not None:
            cells = dict(zip(pause.__code__.co_freevars, pause.__closure__, strict=True))
            cells["spent"].cell_contents /= 2
        frame = frame.f_back
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("shortens-its-training", "a cheat", load=lambda: {"conv2d": conv2d})]
