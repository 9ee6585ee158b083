"""Right for the batch that is verified, wrong for the smaller one that ends an epoch."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "later"
AT = "train"
SAYS = "the output is 0 where"


def conv2d(input, *args, **kwargs):
    return F.conv2d(input, *args, **kwargs) * (len(input) == 16)


@hookimpl
def convbench_backends():
    return [Backend("wrong-for-other-batches", "a cheat", load=lambda: {"conv2d": conv2d})]
