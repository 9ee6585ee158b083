"""torch.autograd.grad answers what the cheat likes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.autograd.grad was replaced by grad of museum.replaces_autograd"


honest = torch.autograd.grad


def grad(outputs, inputs, *args, **kwargs):
    return tuple(gradient * 0 for gradient in honest(outputs, inputs, *args, **kwargs))


def load():
    torch.autograd.grad = grad
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-autograd", "a cheat", load=load)]
