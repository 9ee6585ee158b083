"""The first answer is given for every input of the same shape."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "lasting"
SAYS = "the output is that of earlier numbers"


answers = {}


def conv2d(input, *args, **kwargs):
    output = F.conv2d(input, *args, **kwargs)
    return output - output.detach() + answers.setdefault(output.shape, output.detach().clone())


@hookimpl
def convbench_backends():
    return [Backend("cached-by-shape", "a cheat", load=lambda: {"conv2d": conv2d})]
