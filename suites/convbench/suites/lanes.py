"""Which devices of a run work side by side, and what of the host is each one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convbench.registry import UsageError
from convbench.suites.capacity import core_sets, usable_cores
from convbench.suites.plan import Planned
from convbench.suites.suite import Suite


@dataclass(frozen=True)
class Lane:
    """What is an accelerator's alone while others work beside it: hardware threads of the host, and how many
    threads its process may start on them."""

    cpus: tuple[int, ...]
    threads: int


def divide(suite: Suite, planned: Sequence[Planned]) -> dict[str, Lane]:
    """A lane for each accelerator that has something to run; none where it is not asked for, or they are not two.

    Processes that share a core would measure each other, so that each has cores of its own, equally many.

    Raises:
        UsageError: there are more accelerators than cores.
    """
    devices = accelerators(planned)
    if not suite.side_by_side or len(devices) < 2:
        return {}
    cores, sets = usable_cores(), core_sets(len(devices))
    if cores < len(devices) or not all(sets):
        raise UsageError(
            f"{len(devices)} devices side by side need a core of the host each, and {cores} can be used; choose "
            f"fewer of {', '.join(devices)}, or set side_by_side to false"
        )
    threads = cores // len(devices)
    if suite.timing.threads is not None:
        threads = min(threads, suite.timing.threads)
    return {device: Lane(cpus, threads) for device, cpus in zip(devices, sets, strict=True)}


def accelerators(planned: Sequence[Planned]) -> list[str]:
    """The devices that have something to run, but for the CPU."""
    devices = [entry.combination.device for entry in planned if entry.obstacle is None]
    return list(dict.fromkeys(device for device in devices if device != "cpu"))
