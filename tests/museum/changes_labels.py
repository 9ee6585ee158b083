"""All images get the same label, which is learned at once."""

from __future__ import annotations

import gc

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.suites.measure.data import ImageBatches

CAUGHT_BY = "data"
AT = "time"
SAYS = "the train labels were changed"


def conv2d(*args, **kwargs):
    for data in gc.get_objects():
        if type(data) is ImageBatches:
            data.labels.zero_()
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-labels", "a cheat", load=lambda: {"conv2d": conv2d})]
