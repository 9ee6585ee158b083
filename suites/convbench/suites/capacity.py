"""How many threads and how much memory a worker may take on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from convbench.results.machine import cpu_quota, read_text

MEMORY_SHARE = 0.8  # of what is free when the run begins
CONTROL_GROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores this process may run on: one thread each, since hyperthreads share the units that matter."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota = cpu_quota()
    except (OSError, ValueError):  # no control groups here
        quota = None
    if quota is not None:
        allowed = min(allowed, max(1, int(quota)))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def free_memory_mb() -> int:
    """The memory a worker may take: a share of what is free, in MB (10^6 bytes)."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (read_text(CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit != "max":
        free = min(free, max(0, int(limit) - int(used)))
    return max(1, int(free * MEMORY_SHARE / 1e6))
