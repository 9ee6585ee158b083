"""What the worker writes is changed on its way out."""

from __future__ import annotations

import os

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "os.write was replaced by flatters of museum.replaces_os_write"

honest = os.write


def flatters(descriptor, data):
    honest(descriptor, bytes(data).replace(b'"incorrect"', b'"ok"'))
    return len(data)


def load():
    os.write = flatters
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-os-write", "a cheat", load=load)]
