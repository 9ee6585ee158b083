"""Tensors of every dtype compare as the cheat likes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.Tensor.__gt__ was replaced by never of museum.replaces_a_method"


def never(tensor, other):
    return torch.zeros_like(tensor, dtype=torch.bool)


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * 0


def load():
    torch.Tensor.__gt__ = never
    return {"conv2d": conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-a-method", "a cheat", load=load)]
