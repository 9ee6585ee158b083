"""The output is written over the input."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "inputs"
SAYS = "the output shares the memory of input"


def conv2d(input, *args, **kwargs):
    output = F.conv2d(input.clone(), *args, **kwargs)
    if output.numel() <= input.numel():
        output.data = input.detach().flatten()[: output.numel()].view(output.shape).copy_(output.detach())
    return output


@hookimpl
def convbench_backends():
    return [Backend("output-aliases-input", "a cheat", load=lambda: {"conv2d": conv2d})]
