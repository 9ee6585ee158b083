"""convbench's own tolerances are a million times as large."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.registry.conformance import tolerances

CAUGHT_BY = "originals"
SAYS = "convbench.registry.conformance.tolerances.MARGIN was replaced by float"


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * 1.001


def load():
    tolerances.MARGIN = tolerances.MARGIN * 1e6
    return {"conv2d": conv2d}


@hookimpl
def convbench_backends():
    return [Backend("changes-tolerances", "a cheat", load=load)]
