"""A timer's signal interrupts the process whenever the plugin likes."""

from __future__ import annotations

import signal

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "settings"
SAYS = "the handlers of signals was changed from SIGALRM 0 to SIGALRM interrupts of museum.handles_a_signal"


def interrupts(number, frame):
    """Could change anything."""


def conv2d(*args, **kwargs):
    signal.signal(signal.SIGALRM, interrupts)
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("handles-a-signal", "a cheat", load=lambda: {"conv2d": conv2d})]
