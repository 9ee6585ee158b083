"""The registered backends that can compute on the CPU of this machine."""

from __future__ import annotations

from convbench.registry import discover


def names() -> list[str]:
    """The backends that compute on this machine's CPU."""
    backends = map(discover().backend, discover().backends)
    return sorted(each.name for each in backends if "cpu" in each.devices and each.unavailable() is None)
