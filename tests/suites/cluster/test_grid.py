"""The grid on machines that are made up: nothing here needs Ray, and a task takes no time."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convbench.registry import ConvbenchError, discover
from convbench.results.schema import Row
from convbench.results.storage.store import RunStore
from convbench.suites import Suite
from convbench.suites.cluster import grid
from convbench.suites.cluster import run as cluster_run
from convbench.suites.cluster.connection import CPU_SLOT, Lost
from convbench.suites.config.suite import Budget, RecipeOverrides, Timing
from convbench.suites.processes.protocol import (
    CombinationJob,
    Event,
    Job,
    Measured,
    Result,
)
from fake_machines import HERE, Machine, Notes, Ray

SUITE = Suite(
    name="small",
    dataset="fashion-mnist-sample",
    architectures=("lenet", "mlp"),
    backends=("im2col", "torch"),
    devices=("*",),
    batch_sizes=(64,),
    recipe=RecipeOverrides(epochs=1),
    budget=Budget(train_seconds=0.5, timeout_seconds=100.0),
    timing=Timing(rounds=3, warmup_steps=1, steps=3, quiet_seconds=0),
)

Go = Callable[..., tuple[list[Row], list[str]]]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Go]:
    """Runs a suite on machines; with `resume`, on with what is there."""
    monkeypatch.setattr(grid, "LOOK_SECONDS", 0.01)
    before = set(threading.enumerate())

    def go(*machines: Machine, suite: Suite = SUITE, resume: bool = False) -> tuple[list[Row], list[str]]:
        ray, watcher = Ray(*machines), Notes()
        monkeypatch.setattr(grid, "RemoteNode", ray.node)
        where = tmp_path / "run"
        with RunStore.open(where) if resume else RunStore.create(where) as store:
            steps = grid.Grid(ray, suite, discover(installed=()), store, watcher, None)
            for _ in steps.run(time=True, train=True):
                pass
            return store.rows(), watcher.notes

    yield go
    assert set(threading.enumerate()) == before


def counted(rows: list[Row]) -> Counter[tuple[Any, ...]]:
    return Counter((row.kind, row.round, row.architecture, row.backend, row.device) for row in rows)


def planned(devices: tuple[str, ...] = ("cpu",), verifications: int = 1) -> Counter[tuple[Any, ...]]:
    return Counter(
        (kind, number, architecture, backend, device)
        for device in devices
        for kind, rounds in (("verify", verifications), ("time", 3), ("train", 1))
        for number in range(rounds)
        for architecture in SUITE.architectures
        for backend in SUITE.backends
    )


def check_blocks(rows: list[Row]) -> None:
    """No block is divided, and rows of one block are of one group and round."""
    places: dict[Any, set[Any]] = {}
    for row in rows:
        places.setdefault(row.block, set()).add((row.node, row.kind, row.round, row.architecture, row.device))
    assert all(len(each) == 1 for each in places.values())


def test_every_planned_process_has_its_row_and_names_its_machine_and_block(go: Go) -> None:
    rows, _ = go(*(Machine(name) for name in "abc"))
    assert counted(rows) == planned()
    check_blocks(rows)
    assert {row.status for row in rows} == {"ok"}
    assert {(row.node, row.machine_id) for row in rows} <= {("a", "ma"), ("b", "mb"), ("c", "mc")}
    assert {row.device_name for row in rows} == {"a processor"}
    assert {row.threads for row in rows} == {HERE.cores}


def test_each_kind_of_machine_is_verified_before_anything_else_is_measured_there(go: Go) -> None:
    other = replace(HERE, processor="another")
    machines = [Machine("a"), Machine("b"), Machine("c", other)]
    rows, _ = go(*machines)
    assert counted(rows) == planned(verifications=2)
    kinds = [job.kind for job in machines[2].did if isinstance(job, CombinationJob)]
    assert kinds[: kinds.count("verify")] == ["verify"] * len(SUITE.architectures) * len(SUITE.backends)


def test_cores_and_accelerators_are_slots_which_do_not_disturb_each_other(go: Go) -> None:
    going = Counter[str]()
    clashes = []

    def before(job: Job) -> None:
        if isinstance(job, CombinationJob):
            kind = job.combination.device
            going[kind] += 1
            if going["cpu"] and going["cuda:0"]:
                clashes.append(dict(going))
            time.sleep(0.002)
            going[kind] -= 1

    rows, _ = go(Machine("a", gpus=2, before=before))
    assert counted(rows) == planned(("cpu", "cuda:0"))
    assert clashes == []
    assert {(row.device, row.concurrent_devices) for row in rows} == {("cpu", 0), ("cuda:0", 1)}
    assert {row.device_name for row in rows if row.device == "cuda:0"} == {"a GPU"}


@pytest.mark.parametrize("at", range(1, 9))
def test_a_block_of_a_lost_machine_goes_to_another_and_nothing_counts_twice(go: Go, at: int) -> None:
    jobs = 0

    def before(job: Job) -> None:
        nonlocal jobs
        jobs += isinstance(job, CombinationJob)
        if jobs == at:
            lost.lose()
        time.sleep(0.002)

    lost = Machine("a", before=before)
    rows, notes = go(lost, Machine("b", before=lambda job: time.sleep(0.002)))
    assert counted(rows) == planned()
    check_blocks(rows)
    assert {row.status for row in rows} == {"ok"}
    if jobs >= at:
        assert any("a is gone; " in note and note.endswith("goes to another machine") for note in notes)
        assert any("attempt 2: the machine before was lost" in (row.notes or "") for row in rows)


def test_a_block_that_loses_every_machine_is_given_up(go: Go) -> None:
    def before(job: Job) -> None:
        if isinstance(job, CombinationJob) and job.kind == "time" and job.round == 1:
            raise Lost("some machine is gone")

    suite = SUITE.override({"architectures": ["mlp"]})
    rows, _ = go(*(Machine(name, before=before) for name in "abcdef"), suite=suite)
    given_up = [row for row in rows if row.status != "ok"]
    assert {(row.kind, row.round, row.status) for row in given_up} == {("time", 1, "crashed")}
    assert len(rows) == len(given_up) * 5
    assert all("lost 5 times; at last: some machine is gone" in (row.error or "") for row in given_up)


def test_a_run_without_a_machine_ends_and_keeps_what_it_has(
    go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(grid, "ALONE_SECONDS", 0.1)

    def before(job: Job) -> None:
        if isinstance(job, CombinationJob) and job.kind == "time" and job.round == 1:
            only.lose()

    only = Machine("a", before=before)
    with pytest.raises(ConvbenchError, match="no machine is left for what has to be run on cpu"):
        go(only)
    with RunStore.open(tmp_path / "run") as store:
        rows = store.rows()
    assert {row.kind for row in rows} == {"verify", "time"}
    assert planned() >= counted(rows)
    again = Machine("b")
    rows, _ = go(again, resume=True)
    assert counted(rows) == planned()
    check_blocks(rows)
    assert len([job for job in again.did if isinstance(job, CombinationJob)]) < len(rows)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Machine("c", replace(HERE, versions={**HERE.versions, "torch": "1.0"})), "torch is 1.0"),
        (Machine("c", digest="damaged"), "its images of fashion-mnist-sample are not those of the other"),
        (Machine("c", unavailable=("im2col",)), "backend 'im2col' cannot run and it can on other machines"),
    ],
)  # fmt: skip
def test_a_machine_that_differs_is_refused_by_name(go: Go, other: Machine, reason: str) -> None:
    rows, notes = go(Machine("a"), Machine("b"), other)
    assert counted(rows) == planned()
    (note,) = (each for each in notes if "is not used" in each)
    assert note.startswith(f"c is not used: {reason}")
    assert {row.node for row in rows} == {"a", "b"}
    assert not any(isinstance(job, CombinationJob) for job in other.did)


def test_gpus_of_refused_machines_only_are_left_out(go: Go) -> None:
    rows, notes = go(Machine("a"), Machine("b"), Machine("c", digest="damaged", gpus=1))
    assert counted(rows) == planned()
    assert sum("is not used" in note for note in notes) == 2  # its cores and its GPU


def test_where_every_machine_differs_the_run_is_refused(go: Go) -> None:
    with pytest.raises(ConvbenchError, match="no machine of the cluster can be used"):
        go(Machine("a", replace(HERE, plugins={})))
    with pytest.raises(ConvbenchError, match=CPU_SLOT):
        go(resume=True)


def test_the_smallest_machine_gives_the_threads(go: Go) -> None:
    rows, notes = go(Machine("a", replace(HERE, cores=8)), Machine("b", replace(HERE, cores=3)))
    assert {row.threads for row in rows} == {3}
    assert any("machines have 3 to 8 cores: every process has 3 threads" in note for note in notes)


def test_a_machine_that_joins_late_gets_work_after_the_same_questions(go: Go) -> None:
    def before(job: Job) -> None:
        if isinstance(job, CombinationJob):
            late.alive = odd.alive = late.alive or job.kind == "time"
            time.sleep(0.05)

    late, odd = Machine("b"), Machine("c", digest="other")
    late.alive = odd.alive = False
    rows, notes = go(Machine("a", before=before), late, odd)
    assert counted(rows) == planned()
    assert "b has joined" in notes
    assert "b" in {row.node for row in rows}
    assert any(note.startswith("c is not used: its images") for note in notes)


def test_what_cannot_run_anywhere_has_rows_that_say_so(go: Go) -> None:
    rows, _ = go(Machine("a", unavailable=("im2col",)), Machine("b", unavailable=("im2col",)))
    assert counted(rows) == planned()
    unable = [row for row in rows if row.backend == "im2col"]
    assert {(row.status, row.error, row.node, row.block, row.machine_id) for row in unable} == {
        ("unavailable", "no compiler", None, None, None)
    }


def test_a_combination_that_is_wrong_on_one_kind_of_machine_is_measured_on_none(go: Go) -> None:
    class Wrong(Machine):
        def do(self, job: Job, on_event: Callable[[Event], None]) -> Result:
            result = super().do(job, on_event)
            bad = isinstance(job, CombinationJob) and (job.kind, job.combination.backend) == (
                "verify",
                "im2col",
            )
            return Measured("incorrect", "a wrong sum") if bad else result

    slow = Machine("b", before=lambda job: time.sleep(0.01))
    rows, _ = go(Wrong("a", replace(HERE, processor="another")), slow)
    assert counted(rows) == planned(verifications=2)
    late = [row for row in rows if row.backend == "im2col" and row.kind == "train"]
    assert {row.status for row in late} <= {"incorrect", "ok"}
    assert any(row.status == "incorrect" for row in rows if row.backend == "im2col")


def test_when_the_total_budget_is_over_no_block_starts(go: Go) -> None:
    suite = SUITE.override({"budget.total_seconds": 4.5})  # four of them are kept for the pages

    def before(job: Job) -> None:
        if isinstance(job, CombinationJob):
            time.sleep(0.1)

    rows, _ = go(Machine("a", before=before), suite=suite)
    assert counted(rows) == planned()
    left_out = [row for row in rows if row.left_out]
    assert left_out
    assert all("total budget of" in (row.notes or "") for row in left_out)


def test_environment_says_what_each_machine_is(go: Go, tmp_path: Path) -> None:
    go(Machine("a"), Machine("b", model="another processor"))
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert {name: node["devices"]["cpu"] for name, node in environment["nodes"].items()} == {
        "a": "a processor", "b": "another processor",
    }  # fmt: skip
    with (tmp_path / "run" / "results.csv").open(newline="") as file:
        assert {line["node"] for line in csv.DictReader(file)} == {"a", "b"}


def test_unlike_machines_are_no_reason_for_further_rounds(go: Go) -> None:
    suite = SUITE.override({"timing.max_rounds": 6, "timing.precision": 0.05})
    machines = [Machine(str(factor), step_ms=factor) for factor in (1.0, 2.0, 3.0)]
    for machine in machines:
        machine.before = lambda job: time.sleep(0.01)  # so that each gets a round
    rows, _ = go(*machines, suite=suite)
    assert counted(rows) == planned()
    assert len({row.node for row in rows if row.kind == "time"}) > 1


def test_a_slot_that_was_lost_is_asked_again_while_its_machine_is_there(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "AGAIN_SECONDS", 0.2)
    failures = iter([True, False, True, *[False] * 1000])

    def before(job: Job) -> None:
        if isinstance(job, CombinationJob) and next(failures):
            raise Lost("its process is gone")

    rows, notes = go(Machine("a", before=before))
    assert counted(rows) == planned()
    assert {row.status for row in rows} == {"ok"}
    assert notes.count("a has joined") == 2


@pytest.mark.parametrize("measured", [True, False])
def test_a_dry_run_has_the_slots_and_the_blocks_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    ray = Ray(Machine("a"), Machine("b", replace(HERE, processor="another"), gpus=2))
    watcher = Notes()
    monkeypatch.setattr(cluster_run, "connected", lambda address: nullcontext(ray))
    monkeypatch.setattr(grid, "RemoteNode", ray.node)
    plan = cluster_run.preview_on_cluster(
        "any", SUITE, discover(installed=()), watcher, None, time=measured, train=measured
    )
    assert set(plan.slots) == {"a", "b", "b cuda:0", "b cuda:1"}
    groups = 2 * 2  # networks, and kinds of devices; the processors are of two kinds
    blocks = {"verify": groups + 2, **({"time": 3 * groups, "train": 2 * groups} if measured else {})}
    assert plan.blocks == blocks
    assert str(plan).startswith("on 4 slots (")
    assert {each.combination.device for each in plan.planned} == {"cpu", "cuda:0"}
    assert not any(isinstance(job, CombinationJob) for machine in ray.machines for job in machine.did)
    assert not any("results go to" in note for note in watcher.notes)


@pytest.mark.exhaustive
def test_the_time_of_the_driver_for_a_row_does_not_grow(go: Go) -> None:
    """A hundred machines that take no time."""
    seconds = {}
    for seeds in (25, 100):
        suite = SUITE.override({"seeds": list(range(seeds)), "timing.rounds": 8})
        began = time.process_time()
        rows, _ = go(*(Machine(str(number)) for number in range(100)), suite=suite, resume=seeds > 25)
        seconds[len(rows)] = (time.process_time() - began) / len(rows)
    assert max(seconds.values()) < 0.005, seconds


def test_files_that_are_changed_meanwhile_are_put_back_before_the_run_ends(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "RESTORE_EVERY", 1e9)  # looked at once, and then at the end
    results = tmp_path / "run" / "results.csv"
    jobs = iter(range(1000))

    def before(job: Job) -> None:
        if isinstance(job, CombinationJob) and next(jobs) == 12:
            results.write_text(results.read_text().replace("lenet", "tenet"))

    machine = Machine("a", before=before)
    rows, notes = go(machine)
    assert counted(rows) == planned()
    assert any("results.csv of the run was changed meanwhile, and put back" in note for note in notes)
