"""Runs on a real Ray of a few machines, which are processes of this one: what is lost, and what must not be."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import misbehaving
from conftest import SESSION, processes_with
from convbench.registry import ConvbenchError, UsageError
from convbench.results.schema import Row, columns
from convbench.results.storage.store import RunStore
from convbench.suites import Suite, run
from convbench.suites.cluster.connection import (
    AUTH_MODE,
    AUTH_TOKEN,
    CPU_SLOT,
    RemoteNode,
    connected,
    slots_of,
)
from convbench.suites.config.suite import Budget, RecipeOverrides, Timing
from convbench.suites.runner.agenda import Outlook
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.schedule import Task

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(240)]

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


@pytest.fixture(autouse=True)
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


def test_rows_are_as_without_a_cluster(three: Machines, tmp_path: Path) -> None:
    result = run(SUITE, out=tmp_path / "many", cluster=three.address, watcher=Notes())
    check_whole(result.rows)
    check_samples(result.path)
    with (result.path / "results.csv").open(newline="") as file:
        assert next(csv.reader(file)) == [column.name for column in columns(Row)]
    timed = [row for row in result.rows if row.kind == "time"]
    assert len({row.block for row in timed}) == 3
    assert len({row.node for row in timed}) > 1
    assert {row.threads for row in result.rows} == {1}
    assert all(row.machine_id and row.device_name and row.process_seconds for row in result.rows)
    environment = json.loads((result.path / "environment.json").read_text())
    assert len(environment["nodes"]) == 3
    assert environment["planned_processes"] == {"verify": 2, "time": 6, "train": 2}
    assert not ray.is_initialized()
    wait_for(lambda: not servers())


def test_workers_see_nothing_that_ray_set(three: Machines, tmp_path: Path) -> None:
    with connected(three.address) as joined:
        place = slots_of(joined.nodes())[0]
        node = RemoteNode(joined, place, "test", lambda printed: None)
        try:
            node.describe()
            assert node.start(2) == []
            (server,) = servers()
            process = server.parent()
            assert process is not None
            daemon = process.parent()
            assert daemon is not None
            assert daemon.name() == "raylet"
            seen, own = server.environ(), daemon.environ()
            changed = {name for name in {*seen, *own} if seen.get(name) != own.get(name)}
            threads = {name for name in changed if name.endswith("_NUM_THREADS")}
            assert changed - threads <= {"LD_PRELOAD", "PYTHONPATH", "OMP_PROC_BIND"} | {
                name for name in own if name.startswith("RAY_")
            }
            assert {seen[name] for name in threads} == {"2"}
            assert not any(name.startswith("RAY_") for name in seen)
            assert "ray/_private" not in seen["PYTHONPATH"]
            assert "jemalloc" not in seen.get("LD_PRELOAD", "")
            assert server.nice() == daemon.nice()
            assert server.cpu_affinity() == daemon.cpu_affinity()
            status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
            (blocked,) = (line.split()[1] for line in status if line.startswith("SigBlk"))
            assert int(blocked, 16) == 0
        finally:
            node.close()
    wait_for(lambda: not servers())


def test_a_machine_that_is_killed_in_the_middle_of_a_block_costs_nothing(
    three: Machines, tmp_path: Path
) -> None:
    lost: list[str] = []

    def kill(task: Task) -> None:
        lost.append(task.side)
        three.kill(three.of(task))

    watcher = Notes(once(lambda task: task.kind == "time", kill))
    result = run(SUITE, out=tmp_path / "run", cluster=three.address, watcher=watcher)
    check_whole(result.rows)
    check_samples(result.path)
    again = [row for row in result.rows if "attempt 2" in (row.notes or "")]
    assert {row.kind for row in again} == {"time"}
    assert len({row.block for row in again}) == 1
    assert not {row.node for row in again} & set(lost)
    assert any(lost[0] in note and "goes to another machine" in note for note in watcher.notes)
    wait_for(lambda: not servers())


@pytest.mark.parametrize("seed", [1, 2])
def test_machines_that_are_killed_and_replaced_at_random_cost_nothing(
    three: Machines, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)

    class Killer(Notes):
        """Whatever happens, a machine may be killed."""

        def __init__(self) -> None:
            super().__init__(lambda task: self.kill())
            self.killed, self.at = 0, time.monotonic() + chance.uniform(1, 4)

        def kill(self) -> None:
            if time.monotonic() >= self.at and self.killed < 5:
                self.killed, self.at = self.killed + 1, time.monotonic() + chance.uniform(1, 6)
                three.kill(chance.choice(three.nodes))
                three.add()

        def note(self, text: str) -> None:
            super().note(text)
            self.kill()

        def outlook(self, outlook: Outlook) -> None:
            self.kill()

    watcher = Killer()
    result = run(SUITE, out=tmp_path / "run", cluster=three.address, watcher=watcher)
    assert watcher.killed
    check_whole(result.rows)
    check_samples(result.path)
    wait_for(lambda: not servers())


def test_a_machine_that_hangs_is_taken_for_lost(two: Machines, tmp_path: Path) -> None:
    stopped: list[psutil.Process] = []

    def stop(task: Task) -> None:
        node = two.of(task)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for each in [raylet, *raylet.children(recursive=True)]:
            each.suspend()
            stopped.append(each)

    watcher = Notes(once(lambda task: task.kind == "time", stop))
    result = run(SUITE, out=tmp_path / "run", cluster=two.address, watcher=watcher)
    check_whole(result.rows)
    check_samples(result.path)
    for each in stopped:
        each.resume()
    wait_for(lambda: not servers())  # its daemon sees that it was given up, and ends
    (dead,) = (node for node in two.nodes if stopped[0].pid in pids(node))
    two.kill(dead)


def pids(node: Any) -> set[int]:
    return {each.process.pid for of_kind in node.all_processes.values() for each in of_kind}


def test_a_process_of_ray_that_is_killed_costs_its_block_and_is_started_again(
    two: Machines, tmp_path: Path
) -> None:
    def kill(task: Task) -> None:
        (server,) = (each for each in servers() if psutil.Process(each.ppid()).ppid() in pids(two.of(task)))
        psutil.Process(server.ppid()).kill()

    watcher = Notes(once(lambda task: task.kind == "time", kill))
    result = run(SUITE, out=tmp_path / "run", cluster=two.address, watcher=watcher)
    check_whole(result.rows)
    check_samples(result.path)
    wait_for(lambda: not servers())


def command(address: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "convbench", "run", "--cluster", address, *arguments]


def finish(words: list[str]) -> subprocess.CompletedProcess[str]:
    """What a command says, until it has ended."""
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)


def start(address: str, *arguments: str, until: str) -> subprocess.Popen[str]:
    """A run in a process of its own, which has said this by now."""
    driver = subprocess.Popen(
        command(address, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert driver.stderr is not None
    said = []
    for line in driver.stderr:
        said.append(line)
        if until in line:
            return driver
    raise AssertionError(f"it has ended: {''.join(said)}")


def test_a_driver_that_is_killed_is_resumed(two: Machines, tmp_path: Path) -> None:
    suite, directory = tmp_path / "small.toml", tmp_path / "run"
    suite.write_text(SUITE.to_toml())
    driver = start(two.address, "--suite", str(suite), "--out", str(directory), until="time round")
    driver.kill()
    driver.communicate()
    wait_for(lambda: not servers())
    with RunStore.open(directory) as store:
        before = store.rows()
    assert before
    ended = finish([sys.executable, "-m", "convbench", "run", "--resume", str(directory)])
    assert ended.returncode == 2
    assert "is a run on a cluster; --cluster ADDRESS goes on with it" in ended.stderr
    ended = finish(command(two.address, "--resume", str(directory)))
    assert ended.returncode == 0, ended.stderr
    with RunStore.open(directory) as store:
        rows = store.rows()
    check_whole(rows)
    check_samples(directory)
    kept = [row for row in before if row.kind == "verify"]
    assert [row for row in rows if row.kind == "verify"] == kept
    wait_for(lambda: not servers())


def test_an_interrupted_run_leaves_no_process(two: Machines, tmp_path: Path) -> None:
    driver = start("auto", "--suite", "smoke", "--out", str(tmp_path / "run"), until="verify")
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 130, said
    assert "to go on: convbench run --resume" in said
    wait_for(lambda: not servers())


def test_a_machine_that_joins_late_gets_work(machines: Machines, tmp_path: Path) -> None:
    machines.have(1)
    late = SUITE.override({"timing.rounds": 200})
    places: set[str | None] = set()

    class UntilBoth(Notes):
        def finish(self, task: Task, row: Row) -> None:
            places.update({row.node} if row.kind == "time" and row.is_measured else ())
            if len(places) == 2:
                raise Stop

    watcher = UntilBoth(once(lambda task: task.kind == "verify", lambda task: machines.add()))
    with pytest.raises(Stop):
        run(late, out=tmp_path / "run", cluster=machines.address, watcher=watcher)
    assert any(note.endswith("has joined") for note in watcher.notes)
    with RunStore.open(tmp_path / "run") as store:
        assert {row.node for row in store.rows() if row.kind == "time"} == places
    wait_for(lambda: not servers())


def test_a_machine_with_another_plugin_is_refused_by_name(two: Machines, tmp_path: Path) -> None:
    site = misbehaving.install(tmp_path / "site")
    odd = two.add(env_vars={"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])})
    watcher = Notes()
    try:
        result = run(ONE_ROUND, out=tmp_path / "run", cluster=two.address, watcher=watcher)
    finally:
        two.kill(odd)
    check_whole(result.rows, ONE_ROUND)
    (refused,) = (note for note in watcher.notes if "is not used" in note)
    assert odd.node_id[:6] in refused
    assert "plugin package 'misbehaving_plugins' is only there" in refused
    assert not any(odd.node_id[:6] in (row.node or "") for row in result.rows)


def test_a_cluster_that_offers_nothing_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        with pytest.raises(ConvbenchError, match=CPU_SLOT):
            run(SUITE, out=tmp_path / "run", cluster=cluster.address, watcher=Notes())
    finally:
        cluster.shutdown()
    assert not (tmp_path / "run").exists()


def test_an_address_where_no_cluster_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no Ray cluster can be joined at '127\.0\.0\.1:1'"):
        run(SUITE, out=tmp_path / "run", cluster="127.0.0.1:1", watcher=Notes())


def test_a_cluster_of_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(AUTH_MODE, raising=False)
    before = daemons()
    directory, file = tmp_path / "run", tmp_path / "small.toml"
    file.write_text(ONE_ROUND.to_toml())
    ended = finish(command("local", "--suite", str(file), "--out", str(directory)))
    assert ended.returncode == 0, ended.stderr
    assert "ray" not in ended.stdout.lower()
    with RunStore.open(directory) as store:
        rows = store.rows()
    assert Counter(row.kind for row in rows) == {"verify": 2, "time": 2, "train": 2}
    assert not (
        tmp_path / "home" / ".ray"
    ).exists()  # a token, by which later runs would miss clusters without one
    wait_for(lambda: daemons() == before)


def test_status_says_what_runs_where_and_what_waits(three: Machines, tmp_path: Path) -> None:
    asked: list[subprocess.CompletedProcess[str]] = []
    show = [sys.executable, "-m", "convbench", "cluster", "status", "--address", three.address]

    def ask(task: Task) -> None:
        asked.extend(finish([*show, *options]) for options in ((), ("--json",)))
        raise Stop

    watcher = Notes(once(lambda task: task.kind == "train", ask))
    long = ONE_ROUND.override({"budget.train_seconds": SECONDS, "recipe.epochs": 1000})
    with pytest.raises(Stop):
        run(long, out=tmp_path / "looked-at", cluster=three.address, watcher=watcher)
    assert len(asked) == 2
    for each in asked:
        assert each.returncode == 0, each.stderr
    table, found = asked[0].stdout, json.loads(asked[1].stdout)
    assert len(found["slots"]) == 3
    assert {slot["run"] for slot in found["slots"]} == {"looked-at"}
    assert any(slot["doing"].startswith("train lenet/") for slot in found["slots"])
    assert "looked-at: train lenet/" in table
    assert "looked-at: waits for work" in table or table.count("looked-at: train") >= 2
    wait_for(lambda: not servers())
    idle = finish(show)
    assert idle.stdout.count("free") == 3, idle.stdout + idle.stderr


def test_after_a_local_cluster_another_one_can_be_joined(
    machines: Machines, three: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(AUTH_MODE)
    with connected("local") as joined:
        assert len(slots_of(joined.nodes())) == 1
    assert not {AUTH_MODE, AUTH_TOKEN} & os.environ.keys()
    with connected(three.address) as joined:
        node = RemoteNode(joined, slots_of(joined.nodes())[0], "test", lambda printed: None)
        assert node.describe().versions
        node.close()
