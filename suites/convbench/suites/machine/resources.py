"""How many threads and how much memory a worker may take on this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

from convbench.results.storage.environment import cpu_quota, memory, read_text

MEMORY_SHARE = 0.8  # of what is free when the run begins
CONTROL_GROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores this process may run on: one thread each, since hyperthreads share the units that matter."""
    import psutil

    allowed = len(_allowed())
    try:
        quota = cpu_quota()
    except (OSError, ValueError):  # no control groups here
        quota = None
    if quota is not None:
        allowed = min(allowed, max(1, int(quota)))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def _allowed() -> list[int]:
    """The hardware threads this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def free_memory_mb() -> int | None:
    """The memory a worker may take: a share of what is free, in MB (10^6 bytes); None where nothing tells."""
    _, free = memory()
    limit, used = (read_text(CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit != "max":
        free = min(free, max(0, int(limit) - int(used)))
    return max(1, int(free * MEMORY_SHARE / 1e6)) if math.isfinite(free) else None
