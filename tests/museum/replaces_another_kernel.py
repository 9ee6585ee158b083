"""A kernel that no op of the contract uses is replaced: linear layers return zeros."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
AT = "time"
SAYS = "a kernel of aten::addmm was replaced"


def addmm(bias, input, weight, *, beta=1, alpha=1):
    return input.new_zeros(len(input), weight.shape[1])


def load():
    global library
    library = torch.library.Library("aten", "IMPL")
    library.impl("addmm", addmm, "CPU")
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-another-kernel", "a cheat", load=load)]
