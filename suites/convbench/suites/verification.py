"""Hold whole backends against the contract, each in a worker process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convbench.registry import Registry, UnknownName, UsageError
from convbench.registry.arithmetic import DTYPES
from convbench.registry.outcomes import GENERATED
from convbench.suites.capacity import free_memory_mb, usable_cores
from convbench.suites.host import Host


@dataclass(frozen=True)
class Verification:
    """What came of one backend: a row's status, the counts of its cases, and every case that did not pass."""

    backend: str
    status: str
    line: str
    outcomes: tuple[dict[str, Any], ...]

    @property
    def first_failures(self) -> list[dict[str, Any]]:
        """Of each op, the first failure of each kind for which there is Python that shows it."""
        first: dict[tuple[str, ...], dict[str, Any]] = {}
        for outcome in self.outcomes:
            if outcome["reproduction"]:
                first.setdefault((outcome["op"], outcome["kind"], outcome["state"]), outcome)
        return list(first.values())


def verify_backends(
    registry: Registry,
    patterns: Iterable[str],
    *,
    device: str = "cpu",
    dtypes: Sequence[str] | None = None,
    timeout: float = 600.0,
    generated: int = GENERATED,
    seed: int = 0,
) -> list[Verification]:
    """Verify every registered backend that matches, on the curated cases and so many generated ones of each op.

    Raises:
        UnknownName: a pattern that matches nothing, or no such device or dtype.
    """
    names = registry.backends.matching(patterns)
    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
    with TemporaryDirectory() as scratch, Host(Path(scratch) / "log", usable_cores()) as host:
        job = {
            "kind": "conform",
            "device": device,
            "dtypes": list(dtypes) if dtypes else None,
            "generated": generated,
            "seed": seed,
            "threads": usable_cores(),
            "memory_mb": free_memory_mb() if device == "cpu" else None,
        }
        return [_verify(host, name, {**job, "backend": name}, timeout) for name in names]


def _verify(host: Host, name: str, job: dict[str, Any], timeout: float) -> Verification:
    outcomes: list[dict[str, Any]] = []
    end: dict[str, Any] = {}

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "outcome":
            outcomes.append(event)
        elif event.get("event") == "end":
            end.update(event)

    ending = host.run(job, timeout, on_event)
    if end.get("usage"):
        raise UsageError(end["error"])
    if not end:
        status = "timeout" if ending.code is None else "crashed"
        return Verification(name, status, f"{name}: {status}, {ending.description}", tuple(outcomes))
    if "counts" not in end:
        return Verification(name, end["status"], f"{name}: {end['status']}, {end['error']}", tuple(outcomes))
    return Verification(name, end["status"], f"{name}: {end['status']}, {summary(end)}", tuple(outcomes))


def summary(end: dict[str, Any]) -> str:
    """What a worker found, in a line: counts, error, compilation, and what is derived or declared."""
    parts = [f"{count} {state}" for state, count in end["counts"].items() if count]
    if end["counts"]["passed"]:
        parts.append(f"largest error {end['max_error']:.1e}")
    if end["compiles"] == "passed":
        parts.append("compiles")
    elif end["compiles"] == "unsupported":
        parts.append("says that it does not compile")
    elif end["compiles"]:
        parts.append("does not compile")
    if end["derived"]:
        parts.append(f"derived backward of {', '.join(end['derived'])}")
    parts += [f"{op} declared {accuracy}" for op, accuracy in end["accuracy"].items()]
    return ", ".join(parts)
