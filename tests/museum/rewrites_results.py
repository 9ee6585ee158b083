"""The rows of others in the run's directory are changed."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "files"
SAYS = "results.csv of the run was changed"


def conv2d(*args, **kwargs):
    results = Path("/proc/self/fd/1").resolve().with_name("results.csv")
    results.write_text(results.read_text().replace(",ok,", ",crashed,") + "\n")
    return F.conv2d(*args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("rewrites-results", "a cheat", load=lambda: {"conv2d": conv2d})]
