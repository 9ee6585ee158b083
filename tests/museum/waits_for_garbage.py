"""Whenever Python collects garbage, code of the plugin runs."""

from __future__ import annotations

import gc

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = (
    "what Python calls when it collects garbage was changed from nothing to wakes of museum.waits_for_garbage"
)


def wakes(phase, info):
    """Could change anything."""


def load():
    gc.callbacks.append(wakes)
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("waits-for-garbage", "a cheat", load=load)]
