"""The update of parameters, which is torch's, does nothing."""

from __future__ import annotations

import sys

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.optim.sgd.sgd was replaced by nothing_at_all of museum.replaces_sgd"


def nothing_at_all(*args, **kwargs):
    """No update costs no time."""


def load():
    sys.modules["torch.optim.sgd"].sgd = nothing_at_all
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-sgd", "a cheat", load=load)]
