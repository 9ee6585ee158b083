"""The backward overwrites the gradient that it is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "inputs"
SAYS = "the incoming gradient was changed in place"


class Overwrite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output):
        return output.clone()

    @staticmethod
    def backward(ctx, upstream):
        kept = upstream.clone()
        upstream.data.zero_()
        return kept


def conv2d(*args, **kwargs):
    return Overwrite.apply(F.conv2d(*args, **kwargs))


@hookimpl
def convbench_backends():
    return [Backend("upstream-mutated", "a cheat", load=lambda: {"conv2d": conv2d})]
