"""The table of sums computed by hand loses its entries, so that the reference can be replaced."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl
from convbench.registry.integrity import monkeypatch_guard
from convbench.registry.ops.contract import OPS

CAUGHT_BY = "originals"
SAYS = "convbench.registry.integrity.monkeypatch_guard._KNOWN_ANSWERS was changed"


def zeros(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * 0


def load():
    monkeypatch_guard._KNOWN_ANSWERS.clear()
    object.__setattr__(OPS["conv2d"], "reference", zeros)
    return {"conv2d": zeros}


@hookimpl
def convbench_backends():
    return [Backend("changes-known-answers", "a cheat", load=load)]
