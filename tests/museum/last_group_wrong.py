"""The last group of channels is the first one's answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "only the last 2 channels are wrong"


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    size = output.shape[1] // groups
    return torch.cat([output[:, :-size], output[:, :size]], dim=1) if groups > 1 else output


@hookimpl
def convbench_backends():
    return [Backend("last-group-wrong", "a cheat", load=lambda: {"conv2d": conv2d})]
