"""Every layer of every model waits for two milliseconds."""

from __future__ import annotations

import time

import torch.nn.functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the global hooks of torch's modules was changed from nothing to _global_forward_pre_hooks"


def waits(module, inputs):
    time.sleep(0.002)


def load():
    register_module_forward_pre_hook(waits)
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("hooks-all-modules", "a cheat", load=load)]
