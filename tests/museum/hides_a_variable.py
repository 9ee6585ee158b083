"""A variable of a library below torch is set where Python does not see it, to make products less precise."""

from __future__ import annotations

import os

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the environment of libraries was changed from nothing to ONEDNN_DEFAULT_FPMATH_MODE BF16"


def conv2d(*args, **kwargs):
    os.putenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("hides-a-variable", "a cheat", load=lambda: {"conv2d": conv2d})]
