"""Python tells the plugin of every call that is made, that of the checks among them."""

from __future__ import annotations

import sys

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = (
    "what traces or profiles Python was changed from profiler None to profiler sees of museum.profiles_python"
)


def sees(frame, event, argument):
    """Could note who calls."""


def conv2d(*args, **kwargs):
    sys.setprofile(sees)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("profiles-python", "a cheat", load=lambda: {"conv2d": conv2d})]
