"""The data get a function that hands out the same batch again and again, made beforehand."""

from __future__ import annotations

import gc
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.suites.measure.data import ImageBatches

CAUGHT_BY = "data"
AT = "time"
SAYS = "the train data were replaced"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and torch.is_grad_enabled():
        for data in gc.get_objects():
            if type(data) is ImageBatches and len(data) == 90 and "batch" not in vars(data):
                batch = data.batch(torch.arange(16))
                vars(data)["batch"] = partial(next, repeat(batch))
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("prepares-a-batch", "a cheat", load=lambda: {"conv2d": conv2d})]
