"""The batches that are drawn for a timing are found in a caller, and hold two images from then on."""

from __future__ import annotations

import sys

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "service"
AT = "time"
SAYS = "images, and was to do that of"


def conv2d(*args, **kwargs):
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "time_steps":
            for batch in frame.f_locals["batches"]:
                batch.data = batch.data[:2]
        frame = frame.f_back
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("shrinks-batches", "a cheat", load=lambda: {"conv2d": conv2d})]
