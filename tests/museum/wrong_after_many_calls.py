"""Right for the first hundred calls."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "later"
AT = "time"
SAYS = "the output is 0 where"


calls = 0


def conv2d(*args, **kwargs):
    global calls
    calls += 1
    return F.conv2d(*args, **kwargs) * (calls <= 100)


@hookimpl
def convbench_backends():
    return [Backend("wrong-after-many-calls", "a cheat", load=lambda: {"conv2d": conv2d})]
