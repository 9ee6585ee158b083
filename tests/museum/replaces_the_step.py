"""The code inside the decorators of the optimizer's step is replaced."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.optim.sgd.SGD.step's __code__ was replaced"


def load():
    step = torch.optim.SGD.step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    free = step.__code__.co_freevars
    names = ", ".join(free)
    source = f"def outer({names}):\n def step(self, closure=None):\n  ({names or 'None'}, None)\n return step"
    made = {}
    exec(source, made)
    step.__code__ = made["outer"](*free).__code__
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-step", "a cheat", load=load)]
