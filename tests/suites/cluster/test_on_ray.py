"""Runs on a real Ray of a few machines: what is planned, refused and shown."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import misbehaving
from convbench.registry import ConvbenchError, UsageError
from convbench.results.schema import Row, columns
from convbench.results.storage.store import RunStore
from convbench.suites import run
from convbench.suites.cluster.connection import (
    AUTH_MODE,
    AUTH_TOKEN,
    CPU_SLOT,
    RemoteNode,
    connected,
    slots_of,
)
from convbench.suites.runner.schedule import Task
from ray_machines import (
    ONE_ROUND,
    SECONDS,
    STORE_BYTES,
    SUITE,
    Machines,
    Notes,
    Stop,
    check_samples,
    check_whole,
    command,
    daemons,
    finish,
    once,
    servers,
    wait_for,
)

pytest.importorskip("ray")
pytest_plugins = ["ray_machines"]
pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(240), pytest.mark.usefixtures("no_pages")]


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
    assert not sys.modules["ray"].is_initialized()
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


def test_a_dry_run_says_what_would_run_on_how_many_slots(two: Machines, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SUITE.to_toml())
    shown = finish(command(two.address, "--suite", str(file), "--dry-run", "--out", str(tmp_path / "run")))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("to run") == len(SUITE.backends)
    assert "on 2 slots (2 with " in shown.stderr
    assert "6 blocks (1 to verify, 3 to time and 2 to train)" in shown.stderr
    assert "it takes " in shown.stderr
    assert "results go to" not in shown.stderr
    assert not (tmp_path / "run").exists()
    wait_for(lambda: not servers())
