"""Denormal numbers are kept, which slows whoever has some."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "whether denormal numbers are kept was changed from False to True"


def conv2d(*args, **kwargs):
    torch.set_flush_denormal(False)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-denormals", "a cheat", load=lambda: {"conv2d": conv2d})]
