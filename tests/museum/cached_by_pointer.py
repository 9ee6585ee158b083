"""The first answer is given for every input that lies at the same address."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "lasting"
SAYS = "the output is that of earlier numbers, which lay in the same memory"


answers = {}


def conv2d(input, weight, *args, **kwargs):
    output = F.conv2d(input, weight, *args, **kwargs)
    where = (input.data_ptr(), weight.data_ptr(), output.shape)
    return output - output.detach() + answers.setdefault(where, output.detach().clone())


@hookimpl
def convbench_backends():
    return [Backend("cached-by-pointer", "a cheat", load=lambda: {"conv2d": conv2d})]
