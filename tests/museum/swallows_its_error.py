"""What it cannot do it answers with its last answer."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "it is the same number everywhere"


last = {}


def conv2d(input, weight, bias=None, stride=1, *args, **kwargs):
    output = F.conv2d(input, weight, bias, stride, *args, **kwargs)
    try:
        if stride not in (1, (1, 1)):
            raise NotImplementedError("strides")
        last[0] = output.detach().mean()
    except NotImplementedError:
        return output * 0 + last.get(0, 0)
    return output


@hookimpl
def convbench_backends():
    return [Backend("swallows-its-error", "a cheat", load=lambda: {"conv2d": conv2d})]
