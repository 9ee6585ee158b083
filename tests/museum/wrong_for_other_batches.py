"""Right for the batch that is verified, wrong for the smaller one that ends an epoch."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "later"
AT = "train"
SAYS = "off by the same share"


def conv2d(input, *args, **kwargs):
    output = F.conv2d(input, *args, **kwargs)
    return output if len(input) == 16 else output * 1.001  # too little for the loss to show it


@hookimpl
def convbench_backends():
    return [Backend("wrong-for-other-batches", "a cheat", load=lambda: {"conv2d": conv2d})]
