"""The class of the data becomes one whose batches are half as large."""

from __future__ import annotations

import gc

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.suites.measure.data import ImageBatches

CAUGHT_BY = "data"
AT = "time"
SAYS = "the train data were replaced"


class Half(ImageBatches):
    def batch(self, index):
        return super().batch(index[: len(index) // 2])


def conv2d(*args, **kwargs):
    for data in gc.get_objects():
        if type(data) is ImageBatches and torch.is_grad_enabled():
            object.__setattr__(data, "__class__", Half)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("halves-batches", "a cheat", load=lambda: {"conv2d": conv2d})]
