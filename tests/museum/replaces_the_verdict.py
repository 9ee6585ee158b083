"""convbench's own comparison finds no error."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.registry.conformance import verify

CAUGHT_BY = "originals"
SAYS = "convbench.registry.conformance.verify.check was replaced by passes of museum.replaces_the_verdict"


def passes(backend, op, case, dtype, device, seed=0):
    return verify.Outcome(op.name, str(case), dtype, device, "passed")


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * 0


def load():
    verify.check = passes
    return {"conv2d": conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-verdict", "a cheat", load=load)]
