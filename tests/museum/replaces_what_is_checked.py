"""The checks after a timing get torch's functions in place of the backend's."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.suites.worker.setup import Setup

CAUGHT_BY = "model"
AT = "time"
SAYS = "the backend of the measurement was replaced"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and torch.is_grad_enabled():
        for setup in gc.get_objects():
            if type(setup) is Setup and setup.backend.load is load:
                setup.backend = replace(setup.backend, load=lambda: {"conv2d": F.conv2d})
    return F.conv2d(input, weight, *args, **kwargs)


def load():
    return {"conv2d": conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-what-is-checked", "a cheat", load=load)]
