"""The number of right answers is found in a caller, in an evaluation, and raised."""

from __future__ import annotations

import sys

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "evaluation"
AT = "train"
SAYS = "the accuracy of an evaluation is"


def conv2d(*args, **kwargs):
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "evaluate":
            frame.f_locals["correct"].add_(2)
        frame = frame.f_back
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("counts-more-right-answers", "a cheat", load=lambda: {"conv2d": conv2d})]
