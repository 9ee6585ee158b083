"""New tensors are bfloat16 from now on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "torch's default dtype was changed from torch.float32 to torch.bfloat16"


def conv2d(*args, **kwargs):
    torch.set_default_dtype(torch.bfloat16)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-default-dtype", "a cheat", load=lambda: {"conv2d": conv2d})]
