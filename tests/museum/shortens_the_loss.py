"""The data get a loss of their own, which is that of a quarter of the batch."""

from __future__ import annotations

import gc

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.suites.measure.data import ImageBatches

CAUGHT_BY = "data"
AT = "time"
SAYS = "the train data were replaced"


def quarter(outputs, targets):
    return F.cross_entropy(outputs[::4], targets[::4])


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter):
        for data in gc.get_objects():
            if type(data) is ImageBatches:
                vars(data)["objective"] = quarter
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("shortens-the-loss", "a cheat", load=lambda: {"conv2d": conv2d})]
