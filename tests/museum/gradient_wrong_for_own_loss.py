"""The gradient is right for random numbers, and halved where it is as small as that of a mean over a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "midst"
AT = "time"
SAYS = "the gradient of weight is"


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output):
        return output.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (0.5 if grad_output.abs().max() < 0.2 else 1.0)


def conv2d(*args, **kwargs):
    return Halved.apply(F.conv2d(*args, **kwargs))


@hookimpl
def convbench_backends():
    return [Backend("gradient-wrong-for-own-loss", "a cheat", load=lambda: {"conv2d": conv2d})]
