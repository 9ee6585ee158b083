"""The code of convbench's comparison is replaced, and the function stays the same object."""

from __future__ import annotations

import torch

from convbench.registry import Backend, hookimpl
from convbench.registry.conformance import run_case

CAUGHT_BY = "originals"
SAYS = "convbench.registry.conformance.run_case._compare's __code__ was replaced"


def finds_nothing(name, answer, truth, arithmetic, accuracy, together):
    return 1e-7


def zeros(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups) * 0


def load():
    run_case._compare.__code__ = finds_nothing.__code__
    return {"conv2d": zeros}


@hookimpl
def convbench_backends():
    return [Backend("replaces-code", "a cheat", load=load)]
