"""Right where the name of one of its callers has to do with checks, and zeros everywhere else."""

from __future__ import annotations

import sys

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "midst"
AT = "time"
SAYS = "wrong while timing"

WORDS = ("check", "verif", "conform", "watch")


def watched():
    frame = sys._getframe(2)
    while frame is not None:
        if any(word in frame.f_code.co_qualname for word in WORDS):
            return True
        frame = frame.f_back
    return False


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * watched()


@hookimpl
def convbench_backends():
    return [Backend("right-while-watched", "a cheat", load=lambda: {"conv2d": conv2d})]
