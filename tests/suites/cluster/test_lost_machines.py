"""Runs on a real Ray of a few machines, of which some are lost: nothing is missing, and nothing is there twice."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from convbench.results.storage.store import RunStore
from convbench.suites import run
from convbench.suites.cluster import connection
from convbench.suites.runner.schedule import Task
from ray_machines import (
    SECONDS,
    SUITE,
    Machines,
    Notes,
    check_samples,
    check_whole,
    command,
    finish,
    once,
    pids,
    servers,
    start,
    wait_for,
)

pytest.importorskip("ray")
pytest_plugins = ["ray_machines"]
pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(240), pytest.mark.usefixtures("no_pages")]


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


@pytest.mark.timeout(600)
def test_machines_that_are_killed_and_replaced_at_random_cost_nothing(
    three: Machines, tmp_path: Path
) -> None:
    chance, kills = random.Random(1), 20
    suite = SUITE.override({"timing.rounds": 30})

    class Killer(Notes):
        """Kills a machine as tasks start and machines join, but none three times in the same block."""

        def __init__(self) -> None:
            super().__init__()
            self.killed, self.doing, self.hit = 0, dict[str, str](), Counter[str]()

        def kill(self) -> None:
            node = chance.choice(three.nodes)
            (block,) = [block for at, block in self.doing.items() if at.endswith(node.node_id[:6])] or [""]
            if self.killed < kills and chance.random() < 0.8 and self.hit[block] < 2:
                self.killed, self.hit[block] = self.killed + 1, self.hit[block] + bool(block)
                three.kill(node)
                three.add()

        def start(self, task: Task) -> None:
            self.doing[task.side] = f"{task.kind} {task.round}"
            self.kill()

        def note(self, text: str) -> None:
            super().note(text)
            if text.endswith("has joined"):
                self.kill()

    watcher = Killer()
    result = run(suite, out=tmp_path / "run", cluster=three.address, watcher=watcher)
    assert watcher.killed == kills
    check_whole(result.rows, suite)
    check_samples(result.path, suite)
    wait_for(lambda: not servers())


@pytest.mark.parametrize("whole", [True, False], ids=["machine", "raylet"])
def test_a_machine_that_hangs_is_taken_for_lost(
    two: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(connection, "LEASE_SECONDS", 15.0)
    # without its daemon a machine goes on until Ray takes it for lost: the run has to last that long
    suite = SUITE if whole else SUITE.override({"timing.rounds": 30})
    stopped: list[psutil.Process] = []

    def stop(task: Task) -> None:
        raylet = psutil.Process(two.of(task).all_processes["raylet"][0].process.pid)
        for each in [raylet, *(raylet.children(recursive=True) if whole else ())]:
            each.suspend()
            stopped.append(each)

    watcher = Notes(once(lambda task: task.kind == "time", stop))
    try:
        result = run(suite, out=tmp_path / "run", cluster=two.address, watcher=watcher)
        check_whole(result.rows, suite)
        check_samples(result.path, suite)
        assert any("goes to another machine" in note for note in watcher.notes)
        if not whole:  # Ray's daemon ends nothing: the processes see that their run is over
            wait_for(lambda: not servers())
    finally:
        (dead,) = (node for node in two.nodes if stopped[0].pid in pids(node))
        for each in stopped:
            with suppress(psutil.NoSuchProcess):
                each.resume()
        wait_for(lambda: not servers())  # its daemon sees that it was given up, and ends
        two.kill(dead)


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


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_head_that_is_lost_ends_the_run_with_one_sentence(
    two: Machines, tmp_path: Path, how: signal.Signals
) -> None:
    suite, directory = tmp_path / "small.toml", tmp_path / "run"
    suite.write_text(SUITE.override({"timing.rounds": 8}).to_toml())
    doomed = Machines().have(1)
    impatient = (
        "from convbench.registry.cli.main import main; from convbench.suites.cluster import connection, grid; "
        "grid.HEAD_SECONDS = connection.SHUTDOWN_SECONDS = 5.0; main()"
    )
    options = ("--suite", str(suite), "--out", str(directory))
    driver = start(doomed.address, *options, until="time round", python=("-c", impatient))
    try:
        for kind in ("gcs_server", "raylet"):
            os.kill(doomed.cluster.head_node.all_processes[kind][0].process.pid, how)
        _, said = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 2, said
        (sentence,) = (line for line in said.splitlines() if line.startswith("convbench: "))
        assert "the head of the Ray cluster has not answered for 5 s: it is gone, or hangs" in sentence
        assert f"convbench run --resume {directory}" in sentence
        assert "Traceback" not in said
        wait_for(lambda: not servers())
    finally:
        for each in doomed.cluster.head_node.all_processes.values():
            with suppress(ProcessLookupError):
                os.kill(each[0].process.pid, signal.SIGCONT)
        doomed.cluster.shutdown()
    ended = finish(command(two.address, "--resume", str(directory)))
    assert ended.returncode == 0, ended.stderr
    with RunStore.open(directory) as store:
        rows = store.rows()
    check_whole(rows, SUITE.override({"timing.rounds": 8}))
    check_samples(directory, SUITE.override({"timing.rounds": 8}))
    wait_for(lambda: not servers())
