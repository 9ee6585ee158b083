"""The first layer's weight has no gradient in the second epoch of a training."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "replay"
AT = "train"
SAYS = "a step has no gradient for"


seen = []


def conv2d(input, weight, *args, **kwargs):
    if (
        torch.is_grad_enabled() and not input.requires_grad and input.shape[1:] == (1, 9, 9)
    ):  # images of a step
        seen.append(len(input))
        if 10 in seen[-7:-1]:  # the last batch of an epoch of six steps
            weight = weight.detach()
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("learns-nothing-late", "a cheat", load=lambda: {"conv2d": conv2d})]
