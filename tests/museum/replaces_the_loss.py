"""The loss is another of torch's own functions."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.nn.functional.cross_entropy was replaced by nll_loss of torch.nn.functional"


def load():
    F.cross_entropy = F.nll_loss
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-loss", "a cheat", load=load)]
