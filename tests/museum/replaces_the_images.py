"""All images become views of their first row, which stays in the cache."""

from __future__ import annotations

import gc

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.suites.measure.data import ImageBatches

CAUGHT_BY = "data"
AT = "time"
SAYS = "the train data were replaced"


def conv2d(*args, **kwargs):
    for data in gc.get_objects():
        if type(data) is ImageBatches:
            object.__setattr__(data, "images", data.images[:, :, :1].expand_as(data.images))
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-images", "a cheat", load=lambda: {"conv2d": conv2d})]
