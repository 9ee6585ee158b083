"""Accelerators that work side by side: really at the same time, never two processes on one, the CPU alone.

`cpu:0` and `cpu:1` stand for accelerators: to torch they are the CPU, and to a run they are devices beside it, so
that real workers do real work on them on a machine that has none.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

import misbehaving
from convbench.registry import ConvbenchError, Recipe, UsageError
from convbench.results import compare
from convbench.results.schema import Combination, Row
from convbench.results.store import RunStore
from convbench.suites import Suite, lanes, run, runner
from convbench.suites.against import run_against
from convbench.suites.agenda import Agenda
from convbench.suites.capacity import core_sets, usable_cores
from convbench.suites.forecast import Forecast
from convbench.suites.host import Ending, Host
from convbench.suites.lanes import Lane, divide
from convbench.suites.plan import Planned
from convbench.suites.retraction import retract
from convbench.suites.schedule import Task, schedule
from convbench.suites.side_by_side import run_side_by_side
from convbench.suites.survey import look_around
from convbench.suites.watching import Silent
from preloaded import Preloaded
from result_rows import row, samples

PAIR = ("cpu:0", "cpu:1")
pytestmark = [
    pytest.mark.skipif(usable_cores() < 2, reason="a core for each of two devices is needed"),
    pytest.mark.usefixtures("preloaded_servers"),
]


def suite_of(*backends: str, devices: Sequence[str] = PAIR, **options: Any) -> Suite:
    return replace(misbehaving.suite(*backends, **options), devices=tuple(devices), side_by_side=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fake plugins, on a machine with two fake accelerators."""

    def look(*arguments: Any) -> Any:
        return replace(look_around(*arguments), devices={name: f"a fake {name}" for name in ("cpu", *PAIR)})

    monkeypatch.setattr(runner, "look_around", look)
    monkeypatch.setattr(runner, "find_peaks", lambda *arguments, **options: {})
    site = misbehaving.install(tmp_path / "site")
    with misbehaving.on_path(site):
        yield site


class Told(Silent):
    """Keeps what a run tells, and which devices were at work whenever one began."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.going: list[str] = []
        self.together: set[tuple[str, ...]] = set()
        self.started: list[Task] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, task: Task) -> None:
        self.started.append(task)
        self.going.append(task.combination.device)
        self.together.add(tuple(sorted(self.going)))

    def finish(self, task: Task, row: Row) -> None:
        self.going.remove(task.combination.device)


def test_two_devices_work_at_the_same_time_and_the_cpu_alone(site: Path, tmp_path: Path) -> None:
    """`meets` does not go on before another process has come to its steps: one by one it would end in error."""
    told = Told()
    suite = suite_of("meets", "right", devices=("cpu", *PAIR), rounds=2, threads=usable_cores())
    result = run(suite, out=tmp_path / "run", train=False, watcher=told)
    assert {(row.status, row.error) for row in result.rows} == {("ok", None)}
    assert len(result.rows) == 3 * 2 * 3
    assert PAIR in told.together
    assert told.together <= {("cpu",), *((device,) for device in PAIR), PAIR}

    for device in ("cpu", *PAIR):  # within a device, the order is that of the schedule
        orders = [row.order for row in result.rows if row.device == device]
        assert orders == sorted(orders, key=lambda order: order or 0)
        assert {row.beside for row in result.rows if row.device == device} == {0 if device == "cpu" else 1}
    threads = {device: {row.threads for row in result.rows if row.device == device} for device in PAIR}
    assert threads == {device: {usable_cores() // 2} for device in PAIR}
    assert {row.threads for row in result.rows if row.device == "cpu"} == {usable_cores()}

    told_of = json.loads((tmp_path / "run" / "environment.json").read_text())["side_by_side"]
    first, second = (set(told_of[device]["cpus"]) for device in PAIR)
    assert first
    assert len(first) == len(second)
    assert not first & second
    assert (tmp_path / "run" / "run-cpu-1.log").exists()


def test_what_fails_on_one_device_is_no_other_devices_trouble(site: Path, tmp_path: Path) -> None:
    """What dozes is let go on once the time of one of them was up: rounds after that are measured."""
    (site / "doze").touch()

    class Waking(Told):
        def finish(self, task: Task, row: Row) -> None:
            super().finish(task, row)
            if row.status == "timeout":
                (site / "doze").unlink(missing_ok=True)

    told = Waking()
    suite = suite_of("right", "segfaults", "regicide", "absent", "dozes", timeout=8.0, rounds=2)
    rows = run(suite, out=tmp_path / "run", train=False, watcher=told).rows
    assert len(rows) == 2 * 5 * 3
    statuses = {(row.device, row.backend, row.kind, row.round): row.status for row in rows}
    for device in PAIR:
        for backend, status in (("right", "ok"), ("segfaults", "crashed"), ("regicide", "crashed")):
            assert statuses[device, backend, "verify", 0] == statuses[device, backend, "time", 0] == status
        assert statuses[device, "absent", "time", 0] == "unavailable"
        assert statuses[device, "dozes", "time", 1] == "ok"
    assert [row.status for row in rows].count("timeout") in (1, 2)
    assert PAIR in told.together


def test_an_interrupt_ends_all_and_keeps_rows_and_the_run_goes_on(
    site: Path, tmp_path: Path, preloaded: Preloaded
) -> None:
    (site / "doze").touch()
    family: list[psutil.Process] = []

    def interrupt() -> None:
        misbehaving.wait_until(lambda: len(list(site.glob("dozing-*"))) == 2)
        family.extend(psutil.Process(preloaded.pid).children(recursive=True))
        os.kill(os.getpid(), signal.SIGINT)

    told = Told()
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        run(suite_of("right", "dozes"), out=tmp_path / "run", watcher=told)
    interrupter.join()
    assert len(family) == 5  # three fork servers and two workers
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert told.notes[-1].startswith("interrupted; what was measured is kept in")
    with RunStore.open(tmp_path / "run") as store:
        kept = store.rows()
    assert {(row.device, row.backend) for row in kept if row.kind == "verify"} == {
        (device, backend) for device in PAIR for backend in ("right", "dozes")
    }
    assert {row.status for row in kept} == {"ok"}

    (site / "doze").unlink()
    again = Told()
    result = run(resume=tmp_path / "run", watcher=again)
    assert result.rows[: len(kept)] == tuple(kept)
    assert len(result.rows) == 12
    assert {row.status for row in result.rows} == {"ok"}
    assert {row.beside for row in result.rows} == {1}
    assert PAIR in again.together


def test_an_error_of_the_run_itself_ends_all() -> None:
    """A full disk is found out when a row is written, while the other device's worker is at work."""

    class Quick:
        def run(self, job: Any, timeout: float, on_event: Any) -> Ending:
            return Ending(0)

    class Slow:
        def __init__(self) -> None:
            self.ended = threading.Event()

        def run(self, job: Any, timeout: float, on_event: Any) -> Ending:
            assert self.ended.wait(60)
            return Ending(-9)

        def end(self) -> None:
            self.ended.set()

    class Full:
        timeout, job, watcher = 1.0, dict[str, Any](), Silent()

        def begin(self, task: Any, timeout: float) -> Full:
            return self

        def finish(self, ending: Ending) -> None:
            raise ConvbenchError("the disk is full")

    hosts: Any = {"cpu:0": Quick(), "cpu:1": Slow()}
    turns: Any = Full()
    suite = suite_of("right")
    agendas = {
        entry.combination.device: Agenda(
            suite,
            [Task(entry, "time", 0, order=0, key="")],
            Forecast(suite, 90, 90),
            blocked=lambda task: False,
            timed=lambda combination: [],
        )
        for entry in planned_on(*PAIR)
    }
    with pytest.raises(ConvbenchError, match="the disk is full"):
        run_side_by_side(agendas, hosts, turns)
    assert hosts["cpu:1"].ended.is_set()


def test_what_is_wrong_on_one_device_takes_nothing_from_a_process_that_is_going(tmp_path: Path) -> None:
    """Curves and samples of the other device have no row yet when figures are withdrawn."""
    with RunStore.create(tmp_path / "run", exact=True) as store:
        store.append(row(round=0, step_ms_median=2.0))
        store.append_samples(samples([2.0]))
        store.append_samples(samples([3.0], device="cuda:1"))
        wrong = row(round=1, status="incorrect", error="zeros")
        store.append(wrong)
        retract(store, "zeros", wrong)
        assert [sample.device for sample in store.samples()] == ["cuda:1"]


def test_without_two_accelerators_one_process_runs_at_a_time_and_that_is_said(
    site: Path, tmp_path: Path
) -> None:
    told = Told()
    suite = replace(suite_of("right", devices=("cpu", "cpu:1")), side_by_side=False)
    result = run(suite, out=tmp_path / "run", time=False, train=False, side_by_side=True, watcher=told)
    assert (
        "one process runs at a time: side by side takes two accelerators with something to run, and there is "
        "cpu:1" in told.notes
    )
    assert {row.beside for row in result.rows} == {0}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["side_by_side"] is None


def planned_on(*devices: str, obstacle: Any = None) -> list[Planned]:
    return [
        Planned(Combination("tiny", "a", device, "float32", 16, "contiguous", "eager", 0), Recipe(), obstacle)
        for device in devices
    ]


def test_each_device_has_cores_of_its_own_and_no_more_threads_than_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "usable_cores", lambda: 6)
    monkeypatch.setattr(lanes, "core_sets", lambda parts: [(at, at + 8) for at in range(parts)])
    suite = Suite("some", side_by_side=True)
    planned = planned_on("cpu", "cuda:0", "cuda:1")
    assert divide(suite, planned) == {"cuda:0": Lane((0, 8), 3), "cuda:1": Lane((1, 9), 3)}
    assert divide(suite.override({"timing.threads": 2}), planned)["cuda:0"].threads == 2
    assert divide(suite.override({"timing.threads": 6}), planned)["cuda:0"].threads == 3
    assert divide(replace(suite, side_by_side=False), planned) == {}
    assert divide(suite, planned_on("cuda:0") + planned_on("cuda:1", obstacle=("unavailable", "no"))) == {}


def test_more_devices_than_cores_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "usable_cores", lambda: 1)
    with pytest.raises(UsageError, match="2 devices side by side need a core of the host each, and 1 can be"):
        divide(Suite("some", side_by_side=True), planned_on("cuda:0", "cuda:1"))


def test_cores_are_divided_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of a core share what computes: neither goes to another device."""
    for cpu in range(6):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 3},{cpu % 3 + 3}\n")
    monkeypatch.setattr("convbench.suites.capacity.CPUS", tmp_path)
    monkeypatch.setattr("convbench.suites.capacity._allowed", lambda: list(range(6)))
    assert core_sets(3) == [(0, 3), (1, 4), (2, 5)]
    assert core_sets(2) == [(0, 3), (1, 4)]  # as many for each
    assert core_sets(4) == [()] * 4
    monkeypatch.setattr("convbench.suites.capacity.CPUS", tmp_path / "nothing")
    assert core_sets(2) == [(0, 1, 2), (3, 4, 5)]


def test_a_result_measured_beside_others_is_no_answer_to_a_task_that_runs_alone() -> None:
    suite = Suite("some").override({"timing.threads": 2})
    planned = planned_on("cpu", "cuda:0", "cuda:1")

    def keys(**options: Any) -> dict[str, str]:
        tasks = schedule(suite, planned, lambda combination: {}, "run", time=True, train=False, **options)
        return {f"{task.kind} {task.round} {task.combination.device}": task.key for task in tasks}

    alone, beside = keys(), keys(lanes={"cuda:0": Lane((0, 1), 2), "cuda:1": Lane((2, 3), 2)})
    assert {slot for slot in alone if alone[slot] == beside[slot]} == {s for s in alone if s.endswith("cpu")}


def test_workers_keep_to_their_cores_and_read_the_data_of_another_host(tmp_path: Path) -> None:
    plugin = """
        import json, os
        from convbench.registry import Backend, hookimpl

        @hookimpl
        def convbench_backends():
            where = lambda: str(sorted(os.sched_getaffinity(0)))
            return [Backend("where", "a fake", load=dict, unavailable=where)]
    """
    site = misbehaving.install(tmp_path / "site")
    (site / "misbehaving_plugins.py").write_text(dedent(plugin))
    (cpu, *_), _ = core_sets(2)
    with (
        misbehaving.on_path(site),
        Host(tmp_path / "log") as first,
        Host(tmp_path / "log-2", cpus=(cpu,), data=first) as second,
    ):
        assert os.path.sameopenfile(first.data.fileno(), second.data.fileno())
        events: list[dict[str, Any]] = []
        second.run({"kind": "availability", "backends": ["where"]}, 100, events.append)
        assert events[0]["reason"] == str([cpu])
        second.end()
        with pytest.raises(ConvbenchError, match="was told to end"):
            second.run({"kind": "availability", "backends": ["where"]}, 100, events.append)


def test_two_versions_take_turns_and_are_not_measured_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two versions take turns, process by process"):
        run_against("fast", Suite("some", side_by_side=True), out=tmp_path / "run")


def test_compare_leaves_out_what_ran_beside_others_on_one_side(tmp_path: Path) -> None:
    for name, beside in (("alone", 0), ("old", None), ("beside", 1)):
        with RunStore.create(tmp_path / name, exact=True) as store:
            store.append(row(step_ms_median=2.0, beside=beside))
    assert compare(tmp_path / "alone", tmp_path / "old").times
    forced = compare(tmp_path / "old", tmp_path / "beside", force=True)
    assert "unlike beside (0 and 1)" in forced.times[0].note
