"""Verification checks every call once only, for that is the default now."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.registry.conformance import verify

CAUGHT_BY = "originals"
SAYS = "convbench.registry.conformance.verify.check_with's __defaults__ was replaced"


def load():
    verify.check_with.__defaults__ = (0, True)
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-defaults", "a cheat", load=load)]
