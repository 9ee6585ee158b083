"""The gradient is right where the backward pass keeps its graph, as that of an audit does, and else zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "unannounced"
AT = "time"
SAYS = "a step has no gradient for"


class Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, real):
        ctx.real = real
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        return gradient * (kept or not ctx.real), None


def conv2d(input, weight, *args, **kwargs):
    real = isinstance(weight, torch.nn.Parameter)
    return F.conv2d(input, Weight.apply(weight, real), *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("right-where-graphs-are-kept", "a cheat", load=lambda: {"conv2d": conv2d})]
