"""What looks for replaced functions is replaced itself, and its memory cleared, before the comparison is."""

from __future__ import annotations

import torch

from convbench.registry import Backend, hookimpl
from convbench.registry.conformance import run_case
from convbench.registry.integrity import fingerprint, monkeypatch_guard

CAUGHT_BY = "originals"
SAYS = "convbench.registry.conformance.run_case._compare's __code__ was replaced"


def sees_nothing(self):
    return []


def no_complaint(self):
    return None


def finds_nothing(name, answer, truth, arithmetic, accuracy, together):
    return 1e-7


def zeros(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups) * 0


def load():
    run_case._compare.__code__ = finds_nothing.__code__
    fingerprint.Fingerprint.changes.__code__ = sees_nothing.__code__
    monkeypatch_guard.Originals.check.__code__ = no_complaint.__code__
    monkeypatch_guard.originals.cache_clear()
    return {"conv2d": zeros}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-guard", "a cheat", load=load)]
