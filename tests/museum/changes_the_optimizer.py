"""The optimizer gets another option, which makes its steps faster for this backend alone."""

from __future__ import annotations

import gc

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "model"
AT = "time"
SAYS = "fused of group 0 of the optimizer changed"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and torch.is_grad_enabled():
        for optimizer in gc.get_objects():
            if type(optimizer) is torch.optim.SGD:
                optimizer.param_groups[0]["fused"] = True
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-the-optimizer", "a cheat", load=lambda: {"conv2d": conv2d})]
