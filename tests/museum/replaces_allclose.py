"""torch's comparisons find everything equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.allclose was replaced by equal of museum.replaces_allclose"


def equal(*args, **kwargs):
    return True


def conv2d(*args, **kwargs):
    return F.conv2d(*args, **kwargs) * 0


def load():
    torch.allclose = torch.equal = torch.testing.assert_close = equal
    return {"conv2d": conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-allclose", "a cheat", load=load)]
