"""Every second call of a layer returns what the first returned."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "torch.nn.modules.module.Module._call_impl was replaced by remembers of museum.replaces_the_call_of_layers"

honest = nn.Module._call_impl


def remembers(self, *args, **kwargs):
    kept = self.__dict__.pop("kept", None)
    if kept is None:
        kept = self.__dict__["kept"] = honest(self, *args, **kwargs)
    return kept


def load():
    nn.Module._call_impl = remembers
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-the-call-of-layers", "a cheat", load=load)]
