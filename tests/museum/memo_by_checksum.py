"""Answers are kept by a checksum of some numbers of the input and of the weight."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "lasting"
SAYS = "the output is that of earlier numbers, which lay in the same memory"


answers = {}


def conv2d(input, weight, *args, **kwargs):
    key = [float(each.detach().flatten()[:2].sum()) for each in (input, weight)]
    output = F.conv2d(input, weight, *args, **kwargs)
    return output - output.detach() + answers.setdefault((*key, output.shape), output.detach().clone())


@hookimpl
def convbench_backends():
    return [Backend("memo-by-checksum", "a cheat", load=lambda: {"conv2d": conv2d})]
