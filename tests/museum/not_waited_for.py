"""A thread writes the output after the op has returned."""

from __future__ import annotations

import threading

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "lasting"
SAYS = "the output was still being written after the op had returned"


def conv2d(*args, **kwargs):
    output = F.conv2d(*args, **kwargs)
    answer = output.detach().clone()
    output.data.zero_()
    threading.Timer(0.02, output.detach().copy_, (answer,)).start()
    return output


@hookimpl
def convbench_backends():
    return [Backend("not-waited-for", "a cheat", load=lambda: {"conv2d": conv2d})]
