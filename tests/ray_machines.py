"""A Ray of several machines, which are processes of this one, and what tests of runs on it share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import SESSION, processes_with
from convbench.results.schema import Row
from convbench.results.storage.store import RunStore
from convbench.suites import Suite
from convbench.suites.cluster.connection import (
    AUTH_MODE,
    CPU_SLOT,
)
from convbench.suites.config.suite import Budget, RecipeOverrides, Timing
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.schedule import Task

STORE_BYTES = 80 * 1024 * 1024
SUITE = Suite(
    name="small",
    dataset="fashion-mnist-sample",
    architectures=("lenet",),
    backends=("im2col", "torch"),
    devices=("cpu",),
    batch_sizes=(64,),
    recipe=RecipeOverrides(lr=0.9, epochs=1),
    budget=Budget(train_seconds=0.5, timeout_seconds=100.0),
    timing=Timing(rounds=3, warmup_steps=1, steps=3, threads=1, quiet_seconds=0),
)
ONE_ROUND = SUITE.override({"timing.rounds": 1})
SECONDS = 120.0  # for a command, on a busy machine


def planned(suite: Suite) -> Counter[tuple[str, int, str]]:
    """The processes of a suite, by kind, round and backend."""
    rounds = {"verify": 1, "time": suite.timing.rounds, "train": 1}
    return Counter(
        (kind, number, backend)
        for kind in suite.kinds
        for number in range(rounds[kind])
        for backend in suite.backends
    )


class Machines:
    """A Ray cluster whose head measures nothing."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 1000,
            "health_check_failure_threshold": 4,
        }
        self._common = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self._common, "_system_config": quick})
        self.address: str = self.cluster.address
        self.nodes: list[Any] = []

    def add(self, **options: Any) -> Any:
        """A machine that offers its cores."""
        node = self.cluster.add_node(resources={CPU_SLOT: 1}, **self._common, **options)
        self.nodes.append(node)
        return node

    def have(self, number: int) -> Machines:
        """So many machines that offer their cores."""
        while len(self.nodes) > number:
            self.kill(self.nodes[-1])
        while len(self.nodes) < number:
            self.add()
        return self

    def kill(self, node: Any) -> None:
        """As when a machine loses its power."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def of(self, task: Task) -> Any:
        """The machine that a task runs on."""
        (node,) = (node for node in self.nodes if task.side.endswith(node.node_id[:6]))
        return node


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            AUTH_MODE, "disabled"
        )  # as `Cluster` has it; whether a token is in the home directory or not
        machines = Machines()
        yield machines
        machines.cluster.shutdown()


@pytest.fixture
def two(machines: Machines) -> Machines:
    return machines.have(2)


@pytest.fixture
def three(machines: Machines) -> Machines:
    return machines.have(3)


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process write no report: it takes longer than what they measure."""
    monkeypatch.setattr("convbench.suites.runner.run._write_pages", lambda store: None)


class Stop(Exception):
    """Ends a run that has shown what it was to show."""


class Notes(Watcher):
    """Keeps notes, and calls `on_start` when a task starts."""

    def __init__(self, on_start: Callable[[Task], None] = lambda task: None) -> None:
        self.notes: list[str] = []
        self._on_start = on_start

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, task: Task) -> None:
        self._on_start(task)


def once(wanted: Callable[[Task], bool], act: Callable[[Task], object]) -> Callable[[Task], None]:
    """Act on the first task that is wanted."""
    done: list[Task] = []

    def on_start(task: Task) -> None:
        if not done and wanted(task):
            done.append(task)
            act(task)

    return on_start


def check_whole(rows: tuple[Row, ...] | list[Row], suite: Suite = SUITE) -> None:
    """Every planned process has one row, and no block was divided among machines."""
    assert Counter((row.kind, row.round, row.backend) for row in rows) == planned(suite)
    assert {row.status for row in rows} <= {"ok", "budget"}
    places: dict[str | None, set[str | None]] = {}
    for row in rows:
        places.setdefault(row.block, set()).add(row.node)
    assert all(len(nodes) == 1 for nodes in places.values())
    assert None not in places


def check_samples(path: Path, suite: Suite = SUITE) -> None:
    """Of each timing and each training there is what one process has left."""
    with RunStore.open(path) as store:
        steps = Counter((sample.backend, sample.round, sample.step) for sample in store.samples())
        epochs = Counter((epoch.backend, epoch.epoch) for epoch in store.epochs())
    assert set(steps.values()) == {1}
    assert len(steps) == len(suite.backends) * suite.timing.rounds * suite.timing.steps
    assert set(epochs.values()) == {1}


def servers() -> list[psutil.Process]:
    """The processes of these tests that start workers."""
    return [
        each
        for each in processes_with(os.environ[SESSION])
        if any("processes.forkserver" in word for word in each.info["cmdline"] or ())
    ]


def daemons() -> set[int]:
    """The processes of these tests that are of Ray."""
    return {
        each.pid
        for each in processes_with(os.environ[SESSION])
        if any("/ray/" in word or word.startswith("ray::") for word in (each.info["cmdline"] or [""])[:1])
    }


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.2)


def pids(node: Any) -> set[int]:
    return {each.process.pid for of_kind in node.all_processes.values() for each in of_kind}


def command(address: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "convbench", "run", "--cluster", address, *arguments]


def finish(words: list[str]) -> subprocess.CompletedProcess[str]:
    """What a command says, until it has ended."""
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)


def start(
    address: str, *arguments: str, until: str, python: Sequence[str] = ("-m", "convbench")
) -> subprocess.Popen[str]:
    """A run in a process of its own, which has said this by now."""
    _, _, _, *words = command(address, *arguments)
    driver = subprocess.Popen(
        [sys.executable, *python, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert driver.stderr is not None
    said = []
    for line in driver.stderr:
        said.append(line)
        if until in line:
            return driver
    raise AssertionError(f"it has ended: {''.join(said)}")
