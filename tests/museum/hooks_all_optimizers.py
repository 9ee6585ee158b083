"""The gradients of every step are thrown away before the optimizer sees them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "replay"
AT = "time"
SAYS = "a step has no gradient for 0.weight"

registered = []


def forgets(optimizer, args, kwargs):
    optimizer.zero_grad()


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter) and torch.is_grad_enabled() and not registered:
        registered.append(register_optimizer_step_pre_hook(forgets))
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("hooks-all-optimizers", "a cheat", load=lambda: {"conv2d": conv2d})]
