"""Linear layers, which are torch's, return a part of their input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.nn.modules.linear.Linear.forward was replaced by part of museum.replaces_linear"


def part(self, input):
    return input[..., : self.out_features] + self.bias


def load():
    nn.Linear.forward = part
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-linear", "a cheat", load=load)]
