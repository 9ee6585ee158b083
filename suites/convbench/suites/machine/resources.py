"""How many threads and how much memory a worker may take on this machine."""

from __future__ import annotations

import math

from convbench.results.storage.environment import available_memory_gb, cpu_quota
from convbench.suites.machine.load import allowed_cpus

MEMORY_SHARE = 0.8  # of what is free when the run begins


def usable_cores() -> int:
    """Physical cores this process may run on: one thread each, since hyperthreads share the units that matter."""
    import psutil

    allowed = len(allowed_cpus())
    try:
        quota = cpu_quota()
    except (OSError, ValueError):  # no control groups here
        quota = None
    if quota is not None:
        allowed = min(allowed, max(1, int(quota)))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def free_memory_mb() -> int | None:
    """The memory a worker may take: a share of what is free, in MB (10^6 bytes); None where it is unknown."""
    free = available_memory_gb()
    return max(1, int(free * MEMORY_SHARE * 1e3)) if math.isfinite(free) else None
