"""In one module of convbench the name of a built-in stands for another function."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.registry.conformance import run_case

CAUGHT_BY = "originals"
SAYS = "convbench.registry.conformance.run_case.max was added"


def zero(errors):
    return 0.0


def load():
    run_case.max = zero
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("hides-a-builtin", "a cheat", load=load)]
