"""Right in the warm-up and after two hundred calls, wrong in the steps that are timed."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "midst"
AT = "time"
SAYS = "wrong while timing"


seen = []


def conv2d(input, *args, **kwargs):
    if input.requires_grad or input.shape[1:] != (1, 9, 9):  # of a verification, or of another layer
        return F.conv2d(input, *args, **kwargs)
    seen.append(0)
    return F.conv2d(input, *args, **kwargs) * (
        not 2 < len(seen) < 45
    )  # one first step, one to warm up, 40 timed


@hookimpl
def convbench_backends():
    return [Backend("right-during-warm-up-only", "a cheat", load=lambda: {"conv2d": conv2d})]
