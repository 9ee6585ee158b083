"""The reference of torch.nn.functional is the cheat itself."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.nn.functional.conv2d was replaced by zeros of museum.replaces_the_reference"


honest = F.conv2d


def zeros(*args, **kwargs):
    return honest(*args, **kwargs) * 0


def load():
    F.conv2d = zeros
    return {"conv2d": zeros}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-reference", "a cheat", load=load)]
