"""The layers that called it are found and get a larger stride, which leaves less to compute."""

from __future__ import annotations

import gc

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "model"
AT = "time"
SAYS = "of 0 (Conv2d) changed"


def conv2d(input, weight, *args, **kwargs):
    if isinstance(weight, torch.nn.Parameter):
        for layer in gc.get_objects():
            if type(layer) is torch.nn.Conv2d and layer.padding == (1, 1) and layer.stride == (1, 1):
                layer.dilation, layer.padding = (3, 3), (3, 3)
    return F.conv2d(input, weight, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("changes-layers", "a cheat", load=lambda: {"conv2d": conv2d})]
