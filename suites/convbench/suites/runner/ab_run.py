"""Run a suite on two versions of a package in one run, with their processes interleaved.

A machine drifts by more than the difference that is to be shown, so both versions are measured together: each side
is a run of its own, with a fork server whose workers look for packages in the side's directory first, and every
process of one side is followed or preceded, at random, by its counterpart of the other.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convbench.registry import Registry, UsageError, discover
from convbench.results.schema import Epoch, Row
from convbench.suites.config.suite import Suite
from convbench.suites.processes.protocol import Beat
from convbench.suites.processes.versions import install
from convbench.suites.runner.agenda import Outlook
from convbench.suites.runner.prepare import resolve_suite
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.run import Run, RunResult, directory_of
from convbench.suites.runner.schedule import Task

SIDES = ("base", "new")


def for_two_versions(suite: Suite) -> Suite:
    """A suite whose two sides have the same rounds, all that there may be; none is left out for a total budget."""
    exact = suite.override({"timing.rounds": suite.timing.max_rounds})
    return replace(exact, budget=replace(exact.budget, total_seconds=None))


def run_against(
    package: str,
    suite: Suite | Path | str,
    *,
    out: Path | str | None = None,
    pip_options: Sequence[str] = (),
    registry: Registry | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> tuple[RunResult, RunResult]:
    """Run a suite with another version of a package, the base, and with what is installed, interleaved.

    Args:
        package: the other version, as pip takes it: `fast==1.0`, a directory, a wheel, `git+URL@REF`. It is
            installed into a temporary directory, without what it needs.
        suite: as `run` takes it.
        out: the directory to write the runs `base` and `new` into; `results/<suite>-<UTC time>` when None.
        pip_options: of `pip install`.
        registry: what is registered; discovered when None.
        watcher: told what happens.
        options: `data_dir`, `time` and `train` of `run`.

    Returns:
        both runs, the base first.

    Raises:
        UsageError: the package cannot be installed beside what is here; and as `run` does.
        NothingRan: on one side not one combination could be measured.
    """
    registry = registry or discover()
    suite = for_two_versions(resolve_suite(suite, registry))
    parent = directory_of(suite, out)
    if taken := [side for side in SIDES if (parent / side).exists()]:
        raise UsageError(f"{parent} holds a {taken[0]} already; choose another directory")
    both = Both(watcher or Watcher())
    with TemporaryDirectory(prefix="convbench-base-") as site:
        both.inner.note(f"base: installing {package}")
        base = install(package, Path(site), pip_options)
        both.inner.note(f"base: {', '.join(f'{name} {version}' for name, version in base.versions.items())}")
        runs = [
            Run(
                suite,
                out=parent / side,
                run_id=parent.absolute().name,  # of both: a round of one run has a process on either side
                registry=registry,
                watcher=OneSide(side, both),
                other=base if side == "base" else None,
                **options,
            ).steps()
            for side in SIDES
        ]
        # the order within a pair is as random as that of the schedule, which both sides share
        try:
            first, second = in_turn(runs, random.Random(os.fsencode(parent.name)))
        finally:
            both.inner.end()
    return first, second


def in_turn(runs: Sequence[Generator[None, None, RunResult]], shuffler: random.Random) -> list[RunResult]:
    """Take a step of each, in random order, until all have ended; whatever ends one ends the others too."""
    results: dict[int, RunResult] = {}
    try:
        while waiting := [at for at in range(len(runs)) if at not in results]:
            for at in shuffler.sample(waiting, len(waiting)):
                try:
                    next(runs[at])
                except StopIteration as stop:
                    results[at] = stop.value
    except BaseException as error:
        for run in runs:
            with suppress(type(error), StopIteration):
                run.throw(error)  # it keeps what it has measured
        raise
    return [results[at] for at in range(len(runs))]


@dataclass
class Both:
    """Collects what both sides report, for the one watcher."""

    inner: Watcher
    begun: list[tuple[Sequence[Task], int]] = field(default_factory=list)
    left: dict[str, Outlook] = field(default_factory=dict)


class OneSide(Watcher):
    """Passes on what happens on one side, with its name."""

    def __init__(self, side: str, both: Both) -> None:
        self._side, self._both = side, both

    def note(self, text: str) -> None:
        self._both.inner.note(f"{self._side}: {text}")

    def stage(self, text: str) -> None:
        self._both.inner.stage(f"{self._side}: {text}" if text else "")

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        self._both.begun.append((tasks, kept))
        if len(self._both.begun) == len(SIDES):
            everything = [self._named(task) for each, _ in self._both.begun for task in each]
            self._both.inner.begin(everything, sum(kept for _, kept in self._both.begun))

    def start(self, task: Task) -> None:
        self._both.inner.start(self._named(task))

    def progress(self, task: Task, epoch: Epoch) -> None:
        self._both.inner.progress(self._named(task), epoch)

    def finish(self, task: Task, row: Row) -> None:
        self._both.inner.finish(self._named(task), row)

    def beat(self, task: Task, beat: Beat) -> None:
        self._both.inner.beat(self._named(task), beat)

    def outlook(self, outlook: Outlook) -> None:
        left = self._both.left
        left[self._side] = outlook
        if len(left) == len(SIDES):
            words = f"on either side: {outlook.words}" if outlook.words else ""
            self._both.inner.outlook(Outlook(0.0, sum(each.seconds() for each in left.values()), words))

    def end(self) -> None:
        """Nothing: the other side may still be running, and `run_against` ends the display."""

    def _named(self, task: Task) -> Task:
        return replace(task, side=self._side)
