"""Right only while torch fills new memory, as verification has it do."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "the output is 0 where"


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * torch.are_deterministic_algorithms_enabled()


@hookimpl
def convbench_backends():
    return [Backend("wrong-unless-watched", "a cheat", load=lambda: {"conv2d": conv2d})]
