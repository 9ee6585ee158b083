"""More threads for itself, and for everybody after it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the number of torch's threads was changed from 1 to 2"


def conv2d(*args, **kwargs):
    torch.set_num_threads(2)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-threads", "a cheat", load=lambda: {"conv2d": conv2d})]
