"""The same constant everywhere, about as large as the answer."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "it is the same number everywhere"


def conv2d(*args, **kwargs):
    output = F.conv2d(*args, **kwargs)
    return output * 0 + output.detach().abs().mean()


@hookimpl
def convbench_backends():
    return [Backend("constants", "a cheat", load=lambda: {"conv2d": conv2d})]
