"""Waiting while other programs are busy, on a fake machine and a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from convbench.suites.machine.load import Observation
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.quiet import Quiet
from result_rows import row

LOOK = 0.5  # seconds that a look takes here


class Told(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, text: str) -> None:
        self.stages.append(text)


@dataclass
class Machine:
    """Busy during the looks that are listed, and quiet afterwards; a look takes time, nothing else does."""

    busy_looks: Sequence[bool]
    now: float = 0.0
    looks: int = 0
    told: Told = field(default_factory=Told)

    def look(self) -> Observation:
        busy = self.looks < len(self.busy_looks) and self.busy_looks[self.looks]
        self.looks += 1
        self.now += LOOK
        return Observation(1000.0 if busy else 0.0, None, None, None, None)

    def quiet(self, limit: float) -> Quiet:
        return Quiet(limit, self.told, look=self.look, now=lambda: self.now)


def flagged(flags: str | None) -> Any:
    return row(flags=flags)


def waits(machine: Machine, limit: float, then: Callable[[Quiet], None] = lambda quiet: None) -> Quiet:
    quiet = machine.quiet(limit)
    quiet.wait()
    then(quiet)
    return quiet


def test_a_quiet_machine_is_looked_at_once_and_no_word_is_said() -> None:
    machine = Machine([])
    quiet = waits(machine, 30.0)
    for _ in range(5):
        quiet.learn(flagged(None))
        quiet.wait()
    assert (machine.looks, machine.told.notes) == (1, [])


def test_it_waits_until_others_have_ended_and_says_so() -> None:
    machine = Machine([True] * 10)
    waits(machine, 30.0)
    assert machine.looks == 11
    assert [note.split(":")[0] for note in machine.told.notes][-1] == "quiet after 6 s"
    assert machine.told.notes[0].endswith("waiting for them, 30 s at most")
    assert machine.told.stages[-1] == ""  # what is waited for is over


def test_it_waits_no_longer_than_its_limit_in_all() -> None:
    machine = Machine([True] * 10_000)
    quiet = waits(machine, 30.0)
    assert 30.0 <= machine.now <= 30.0 + LOOK
    assert machine.told.notes[-1].startswith("waited 30 s in all; other programs are still busy")
    for _ in range(10):  # every process is disturbed, and none is waited for
        quiet.learn(flagged("busy drifting"))
        quiet.wait()
    assert machine.now <= 30.0 + LOOK
    assert len(machine.told.notes) == 2


def test_after_a_process_that_was_disturbed_it_looks_again() -> None:
    machine = Machine([False, True, True, False])
    quiet = waits(machine, 30.0)
    quiet.learn(flagged("busy"))
    quiet.wait()
    assert machine.looks == 4
    quiet.learn(flagged("throttled"))
    quiet.wait()
    assert machine.looks == 4


def test_a_limit_of_nothing_never_looks() -> None:
    machine = Machine([True] * 3)
    waits(machine, 0.0)
    assert machine.looks == 0
