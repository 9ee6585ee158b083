"""Another module takes the place of one that convbench imports later, and tells of less memory."""

from __future__ import annotations

import resource
import sys
from types import ModuleType, SimpleNamespace

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "the module resource was replaced"


pretended = ModuleType("resource")
vars(pretended).update(vars(resource), getrusage=lambda who: SimpleNamespace(ru_maxrss=1024, ru_nivcsw=0))


def conv2d(*args, **kwargs):
    sys.modules["resource"] = pretended
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("replaces-a-module", "a cheat", load=lambda: {"conv2d": conv2d})]
