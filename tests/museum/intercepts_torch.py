"""A mode that sees every call of torch's stays on."""

from __future__ import annotations

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the modes that intercept torch's calls was changed from 0 to 1"


class Eavesdropper(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def load():
    Eavesdropper().__enter__()
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("intercepts-torch", "a cheat", load=load)]
