"""torch.conv2d is the cheat itself."""

from __future__ import annotations

import torch

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.conv2d was replaced by zeros of museum.replaces_torch_conv2d"


honest = torch.conv2d


def zeros(*args, **kwargs):
    return honest(*args, **kwargs) * 0


def load():
    torch.conv2d = zeros
    return {"conv2d": zeros}


@hookimpl
def convbench_backends():
    return [Backend("replaces-torch-conv2d", "a cheat", load=load)]
