"""Sums in a random order, and claims to be deterministic."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "again"
SAYS = "output differs between two runs on the same data"


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups > 1:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    order = torch.randperm(input.shape[1] * 4) % input.shape[1]
    order = torch.tensor(list(dict.fromkeys(order.tolist())), dtype=torch.int64)
    output = F.conv2d(input[:, order], weight[:, order], bias, stride, padding, dilation)
    noise = 1e-7 * torch.rand(output.shape)
    return output * (1 + noise)


@hookimpl
def convbench_backends():
    return [Backend("nondeterministic", "a cheat", load=lambda: {"conv2d": conv2d})]
