"""A result of its own is written where a worker's go, and the process ended."""

from __future__ import annotations

import os

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "events"
STATUS = "crashed"
SAYS = "without a result"


FORGED = b'{"type": "Measured", "status": "ok", "measures": {"max_error": 0.0, "served": "conv2d 3/3"}}'


def conv2d(*args, **kwargs):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\n" + FORGED + b"\n")
        except OSError:
            pass
    os._exit(0)


@hookimpl
def convbench_backends():
    return [Backend("forges-a-result", "a cheat", load=lambda: {"conv2d": conv2d})]
