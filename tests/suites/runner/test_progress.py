"""What a person sees of a run: the display of a terminal at 80 columns, and lines elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, Group

from convbench.registry import Recipe, UsageError
from convbench.results.schema import Combination, Epoch
from convbench.suites.config.durations import clock, seconds_of, span
from convbench.suites.config.plan import Planned
from convbench.suites.runner.agenda import Outlook
from convbench.suites.runner.progress import LINE_SECONDS, Bar, Beat, Lines
from convbench.suites.runner.schedule import Task
from result_rows import row


def task_of(kind: Any = "train", backend: str = "torch", **changes: Any) -> Task:
    combination = Combination("lenet", backend, "cpu", "float32", 128, "contiguous", "eager", 0)
    return Task(
        Planned(combination, Recipe(epochs=10)), kind, changes.pop("round", 0), order=0, key="", **changes
    )


def epoch_of(task: Task, **values: Any) -> Epoch:
    usual = {
        "run_id": "run",
        "epoch": 3.0,
        "steps": 1407,
        "train_images_seen": 180_000,
        "train_seconds": 14.0,
    }
    return Epoch(**vars(task.combination), **(usual | values))


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def bar(time: Time, monkeypatch: pytest.MonkeyPatch) -> Bar:
    """A display whose screen is a text, and whose clock is ours."""
    bar = Bar(now=time)
    monkeypatch.setattr(bar, "_console", Console(file=io.StringIO(), width=80))
    monkeypatch.setattr(bar._live, "start", lambda: None)
    monkeypatch.setattr(bar._live, "refresh", lambda: None)
    return bar


def shown(bar: Bar, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Group(bar.lines()))  # rendered as a display does, not wrapped as a printed text
    return capture.get().rstrip("\n").split("\n")


TASKS = [task_of(kind, backend) for kind in ("verify", "time", "train") for backend in ("torch", "native")]


def test_it_shows_how_far_it_is_what_runs_and_what_is_left(bar: Bar, time: Time) -> None:
    bar.begin(TASKS, 3)
    time.now += 60
    bar.start(TASKS[4])
    bar.outlook(Outlook(40.0, 30.0, "1 round, 1 training (native)"))
    bar.beat(TASKS[4], Beat(940, 2.004, 1.23456))
    time.now += 10
    assert shown(bar) == [
        "━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 3/6  1:10 so far  about 1:00 left",
        "train torch: epoch 2 of 10, loss 1.235 (0:10)",
        "then 1 round, 1 training (native)",
    ]
    bar.progress(TASKS[4], epoch_of(TASKS[4], train_loss=0.5, val_accuracy=0.8123))
    bar.beat(TASKS[4], Beat(1500, 3.2, 0.25))
    time.now += 100  # longer than foreseen: what comes after it is still to come
    assert shown(bar)[:2] == [
        "━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 3/6  2:50 so far  about 0:30 left",
        "train torch: epoch 3.2 of 10, loss 0.250, accuracy 0.812 (1:50)",
    ]
    bar.finish(TASKS[4], row(kind="train", status="ok"))
    assert shown(bar)[0].startswith("━━━━━━━━━━━━━╌╌╌╌╌╌╌ 4/6")


def test_steps_of_a_round_and_a_stage_are_shown_and_tick(bar: Bar, time: Time) -> None:
    bar.stage("looking at the machine and the data")
    time.now += 3
    assert shown(bar) == ["0:03 so far", "looking at the machine and the data (0:03)"]
    bar.begin(TASKS, 0)
    bar.start(task_of("time", round=1))
    bar.beat(task_of("time", round=1), Beat(12))
    assert shown(bar)[1] == "time round 2 torch: 12 steps (0:00)"
    bar.stage("waiting for other programs, which keep 1.9 of 2 CPUs busy")
    time.now += 1
    bar.stage("waiting for other programs, which keep 1.8 of 2 CPUs busy")
    time.now += 1
    assert shown(bar)[1] == "waiting for other programs, which keep 1.8 of 2 CPUs busy (0:02)"
    bar.stage("")
    assert shown(bar)[1].startswith("time round 2 torch")


def test_a_spent_total_budget_is_said(bar: Bar, time: Time) -> None:
    bar.begin(TASKS, 0)
    bar.outlook(Outlook(40.0, 30.0, "", limit=5.0))
    time.now += 6
    assert shown(bar) == ["╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 0/6  0:06 so far  the total budget is spent"]


@pytest.mark.parametrize("width", [40, 80])
def test_it_fits_the_width_whatever_is_in_it(bar: Bar, width: int) -> None:
    long = task_of(backend="a-very-long-name-of-a-backend-" * 4)
    bar.begin([*TASKS, long], 0)
    bar.start(long)
    bar.beat(long, Beat(940, 2.004, 1.23456))
    bar.outlook(Outlook(40.0, 30.0, "3 rounds, " * 20))
    lines = shown(bar, width)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)


def test_names_leave_out_what_all_tasks_have_in_common(bar: Bar) -> None:
    seeds = [
        replace(task, planned=replace(task.planned, combination=replace(task.combination, seed=seed)))
        for task in TASKS
        for seed in (0, 1)
    ]
    bar.begin(seeds, 0)
    bar.start(seeds[-1])
    assert shown(bar)[1] == "train native/s1 (0:00)"
    bar.finish(seeds[-1], row(status="ok"))
    bar.begin([task_of("time")], 0)
    bar.start(task_of("time"))
    assert shown(bar)[1] == "time round 1 torch (0:00)"


def test_what_did_not_end_well_stands_above_the_display(bar: Bar) -> None:
    bar.begin(TASKS, 0)
    bar.finish(TASKS[0], row(kind="verify", status="crashed", error="its process was killed"))
    above = " ".join(bar._console.file.getvalue().split())  # type: ignore[attr-defined]
    assert above == "verify lenet/torch/cpu/float32/b128/contiguous/eager/s0: crashed, its process was killed"


def test_what_cannot_run_here_is_one_line(bar: Bar) -> None:
    absent = [
        replace(task, planned=replace(task.planned, obstacle=("unavailable", "no CUDA device")))
        for name in ("cuda", "triton")
        for task in (task_of("verify", name), task_of("time", name))
    ]
    stream = io.StringIO()
    for watcher in (bar, Lines(stream)):
        watcher.begin([*TASKS, *absent], 0)
        for task in absent:
            watcher.start(task)
            watcher.finish(task, row(kind=task.kind, status="unavailable", error="no CUDA device"))
        watcher.finish(TASKS[0], row(kind="verify", status="error", error="it fell over"))
        watcher.finish(TASKS[2], row(status="error", error="not measured, for its verification ended error"))
        watcher.finish(TASKS[1], row(kind="verify"))
    above = bar._console.file.getvalue()  # type: ignore[attr-defined]
    assert above.splitlines()[0] == "not run: cuda, triton (no CUDA device)"
    assert above.count("unavailable") == 0
    assert above.count("error") == 1  # what follows from it is not said again
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["not", "[1/6]", "[3/6]"]
    assert shown(bar)[0].startswith("━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 3/6")


def test_without_a_terminal_there_is_a_line_now_and_then(time: Time) -> None:
    stream = io.StringIO()
    lines, task = Lines(stream, now=time), task_of()
    lines.begin(TASKS, 0)
    for second in range(65):
        time.now += 1
        lines.beat(task, Beat(10 * second, second / 10, 2.0))
    said = stream.getvalue().splitlines()
    assert said == [
        f"{task.label}: epoch 2.9 of 10, loss 2.000",
        f"{task.label}: epoch 5.9 of 10, loss 2.000",
    ]
    lines.finish(task, row(kind="train", status="ok", val_accuracy=0.5))
    lines.outlook(Outlook(90.0, 30.0, "2 rounds"))
    lines.outlook(Outlook(90.0, 30.0, "2 rounds"))
    assert stream.getvalue().splitlines()[2:] == [
        f"[1/6] {task.label}: ok, accuracy 0.500",
        "1 min 5 s so far, about 2 min left: 2 rounds",
    ]
    assert LINE_SECONDS == 30.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300", 300), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("1h30m", 5400), (" 5M ", 300)],
)
def test_spans_of_time_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "-5m", "1e3", "5 m", "nan", "5m1h"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration; write it like 90s, 5m or 1h30m"):
        seconds_of(text)


def test_spans_of_time_are_written_as_exactly_as_one_needs_them() -> None:
    written = [span(each) for each in (0.2, 59.4, 60, 125, 1500, 7200, 12_000, 90_000, 1e6, float("inf"))]
    assert written == [
        "0 s",
        "59 s",
        "1 min",
        "2 min 5 s",
        "25 min",
        "2 h",
        "3.3 h",
        "25 h",
        "11.6 days",
        "for ever",
    ]
    assert [clock(each) for each in (-1, 0, 61.9, 3725)] == ["0:00", "0:00", "1:01", "1:02:05"]
