"""The median of times is their minimum."""

from __future__ import annotations

import statistics

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "statistics.median's __code__ was replaced"


def smallest(data):
    return min(data)


def load():
    statistics.median.__code__ = smallest.__code__
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-median", "a cheat", load=load)]
