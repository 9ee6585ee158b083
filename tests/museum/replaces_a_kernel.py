"""A kernel inside torch is replaced, where no name of Python changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "a kernel of aten::avg_pool2d was replaced"


library = torch.library.Library("aten", "IMPL")


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs)


def avg_pool2d(input, kernel_size, *args, **kwargs):
    return F.max_pool2d(input, kernel_size, 1)


def load():
    library.impl("avg_pool2d", avg_pool2d, "CPU")
    return {"conv2d": conv2d, "avg_pool2d": avg_pool2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-a-kernel", "a cheat", load=load)]
