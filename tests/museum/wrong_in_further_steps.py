"""Right in the first steps of a timing, and wrong in those that follow until their median is precise."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "midst"
AT = "time"
SAYS = "wrong while timing"


seen = []


def conv2d(input, weight, *args, **kwargs):
    output = F.conv2d(input, weight, *args, **kwargs)
    if (
        torch.is_grad_enabled() and not input.requires_grad and input.shape[1:] == (1, 9, 9)
    ):  # images of a step
        seen.append(0)
        return output * (not 46 < len(seen) < 69)  # 2 steps, then 40 timed and 4 for audits, then 20 and 2
    return output


@hookimpl
def convbench_backends():
    return [Backend("wrong-in-further-steps", "a cheat", load=lambda: {"conv2d": conv2d})]
