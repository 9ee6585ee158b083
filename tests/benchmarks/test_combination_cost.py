"""What a further combination costs beyond its own work: the processes it is verified, timed and trained in.

`test_harness_cost.py` has what it costs beyond them, with many more combinations.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import install

from convbench.suites import Suite, run
from convbench.suites.config.suite import Budget, RecipeOverrides, Timing
from convbench.suites.runner.progress import Watcher

LIMIT = 0.5  # seconds
LIMIT_OF_THE_PARENT = 0.05  # seconds of its processor's time
COMBINATIONS = 12


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site")))


class Clock(Watcher):
    """When each process began and ended, and what the parent had worked."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        self.made = time.perf_counter()
        self.set_up = self.began = self.ended = 0.0

    def begin(self, tasks: Any, kept: int) -> None:
        self.set_up = time.perf_counter() - self.made
        self.began = time.process_time()

    def end(self) -> None:
        self.ended = time.process_time()

    def start(self, task: Any) -> None:
        self._began = time.perf_counter()

    def finish(self, task: Any, row: Any) -> None:
        assert row.status == "ok", row.error
        self.seconds.append((task.kind, time.perf_counter() - self._began))


@pytest.mark.usefixtures("plugin")
def test_a_further_combination_costs_less_than_half_a_second(tmp_path: Path, benchmark: Any) -> None:
    """Verified, timed in one round and trained: three processes, of which the median of several is taken."""
    clock = Clock()
    suite = Suite(
        name="cost",
        dataset="tiny",
        architectures=("tiny0",),
        backends=("fake0",),
        devices=("cpu",),
        batch_sizes=(16,),
        seeds=tuple(range(COMBINATIONS)),
        recipe=RecipeOverrides(epochs=1),
        budget=Budget(memory_mb=4000),
        timing=Timing(rounds=1, warmup_steps=1, steps=1, threads=1, quiet_seconds=0.0),
    )
    benchmark.pedantic(run, (suite,), {"out": tmp_path / "run", "watcher": clock}, rounds=1, iterations=1)
    medians = {
        kind: statistics.median(seconds for name, seconds in clock.seconds if name == kind)
        for kind in ("verify", "time", "train")
    }
    cost = sum(medians.values())
    parent = (clock.ended - clock.began) / COMBINATIONS
    benchmark.extra_info.update(medians, seconds_per_combination=cost, seconds_of_the_parent=parent)
    print(f"\n{cost:.3f} s per combination: {medians}; {1000 * parent:.1f} ms of the parent's processor time")
    print(f"{clock.set_up:.1f} s once in a run: the fork server, the survey, the data, the peaks")
    assert cost < LIMIT
    assert parent < LIMIT_OF_THE_PARENT
