"""Right for the first images of the dataset, and zeros for all others."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from museum.honest import images

CAUGHT_BY = "step"
AT = "time"
SAYS = "the output is 0 where"


def conv2d(input, *args, **kwargs):
    output = F.conv2d(input, *args, **kwargs)
    if input.requires_grad or input.shape[1:] != (1, 9, 9):  # of a verification, or of another layer
        return output
    first = images().train_images[:1] / 255
    return output * bool(torch.equal(input[:1], first))


@hookimpl
def convbench_backends():
    return [Backend("right-for-first-batch", "a cheat", load=lambda: {"conv2d": conv2d})]
