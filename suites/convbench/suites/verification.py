"""Hold whole backends against the contract, each in a worker process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convbench.registry import Registry, UnknownName, UsageError
from convbench.suites.capacity import free_memory_mb, usable_cores
from convbench.suites.host import Host
from convbench.suites.suite import DTYPES


@dataclass(frozen=True)
class Verification:
    """What came of one backend: a row's status, the counts of its cases, and every case that did not pass."""

    backend: str
    status: str
    line: str
    outcomes: tuple[dict[str, Any], ...]


def verify_backends(
    registry: Registry,
    patterns: Iterable[str],
    *,
    device: str = "cpu",
    dtypes: Sequence[str] | None = None,
    timeout: float = 600.0,
) -> list[Verification]:
    """Verify every registered backend that matches.

    Raises:
        UnknownName: a pattern that matches nothing, or no such device or dtype.
    """
    names = registry.backends.matching(patterns)
    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
    with TemporaryDirectory() as scratch, Host(Path(scratch) / "log", usable_cores()) as host:
        return [_verify(host, name, device, dtypes, timeout) for name in names]


def _verify(host: Host, name: str, device: str, dtypes: Sequence[str] | None, timeout: float) -> Verification:
    outcomes: list[dict[str, Any]] = []
    end: dict[str, Any] = {}

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "outcome":
            outcomes.append(event)
        elif event.get("event") == "end":
            end.update(event)

    job = {
        "kind": "conform",
        "backend": name,
        "device": device,
        "dtypes": list(dtypes) if dtypes else None,
        "threads": usable_cores(),
        "memory_mb": free_memory_mb() if device == "cpu" else None,
    }
    ending = host.run(job, timeout, on_event)
    if end.get("usage"):
        raise UsageError(end["error"])
    if not end:
        status = "timeout" if ending.code is None else "crashed"
        return Verification(name, status, f"{name}: {status}, {ending.description}", tuple(outcomes))
    if "counts" not in end:
        return Verification(name, end["status"], f"{name}: {end['status']}, {end['error']}", tuple(outcomes))
    counts = ", ".join(f"{count} {state}" for state, count in end["counts"].items() if count)
    line = f"{name}: {end['status']}, {counts}, largest error {end['max_error']:.1e}"
    return Verification(name, end["status"], line, tuple(outcomes))
