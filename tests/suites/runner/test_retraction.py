"""What was measured of a combination that turned out wrong loses its figures, and nothing else does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from unittest import mock

from convbench.registry import Recipe, discover
from convbench.results.schema import Epoch, Kind, Row, Status
from convbench.results.storage.store import RunStore
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Suite
from convbench.suites.processes.protocol import ImageFile, Measured
from convbench.suites.runner.recorder import (
    FIGURES,
    Circumstances,
    Recorder,
    retract,
    without_figures,
)
from convbench.suites.runner.schedule import Task
from result_rows import LENET, row, samples

SPEED = {"images_per_second": 1000.0, "step_ms_median": 2.0, "setup_seconds": 0.5, "peak_memory_mb": 90.0}


def test_rows_samples_and_curves_of_what_is_wrong_are_withdrawn(tmp_path: Path) -> None:
    wrong = row(round=1, status="incorrect", error="wrong after timing: zeros")
    with RunStore.create(tmp_path / "run", exact=True) as store:
        for each in (
            row(kind="verify", max_error=1e-6),
            row(round=0, **SPEED),
            row(round=0, backend="torch", **SPEED),
            wrong,
            row(kind="train", val_accuracy=0.9, train_seconds=3.0),
        ):
            store.append(each)
        store.append_samples(samples([2.0, 2.1]))
        store.append_samples(samples([2.0], backend="torch"))
        progress = {"epoch": 1.0, "steps": 1, "train_images_seen": 1, "train_seconds": 3.0}
        store.append_epochs([Epoch(run_id="run", **vars(LENET), **progress)])
        retract(store, "not measured, for its later timing ended incorrect: zeros", wrong)
        verified, timed, others, kept, trained = store.rows()
        assert verified.max_error == 1e-6
        assert (verified.status, others.status) == ("ok", "ok")
        assert others.images_per_second == 1000.0
        assert kept == wrong
        for each in (timed, trained):
            assert each.status == "incorrect"
            assert each.error == "not measured, for its later timing ended incorrect: zeros"
            assert not any(getattr(each, name) for name in FIGURES)
        assert {sample.backend for sample in store.samples()} == {"torch"}
        assert store.epochs() == []


def test_samples_that_have_no_row_yet_are_not_withdrawn(tmp_path: Path) -> None:
    """Samples are written before their row."""
    with RunStore.create(tmp_path / "run", exact=True) as store:
        store.append(row(round=0, step_ms_median=2.0))
        store.append_samples(samples([2.0]))
        store.append_samples(samples([3.0], device="cuda:1"))
        wrong = row(round=1, status="incorrect", error="zeros")
        store.append(wrong)
        retract(store, "zeros", wrong)
        assert [sample.device for sample in store.samples()] == ["cuda:1"]


def test_files_are_rewritten_only_where_there_is_something_to_take_back(tmp_path: Path) -> None:
    """A run of a thousand wrong combinations would otherwise rewrite all of its rows a thousand times."""
    images = ImageFile("fashion-mnist", {"train_images": (60000, 1, 28, 28)})
    facts = Circumstances(
        "0.1.0", "2.11.0", "machine", {"cpu": "a processor"}, images, discover(installed=())
    )

    def task(kind: Kind, round: int) -> Task:
        return Task(Planned(LENET, Recipe()), kind, round, order=round, key="0")

    def write(recorder: Recorder, kind: Kind, round: int, status: Status) -> None:
        recorder.write(task(kind, round), Measured(status, measures=SPEED))

    with (
        RunStore.create(tmp_path / "run", exact=True) as store,
        mock.patch.object(store, "withdraw") as rewritten,
    ):
        recorder = Recorder(Suite(name="some"), store, facts)
        write(recorder, "verify", 0, "ok")
        write(recorder, "time", 0, "incorrect")
        assert not rewritten.called
        resumed = Recorder(Suite(name="some"), store, facts)
        write(resumed, "train", 0, "incorrect")  # its epochs are in curves.csv
        assert rewritten.call_count == 1
        write(resumed, "time", 0, "ok")
        write(Recorder(Suite(name="some"), store, facts), "time", 1, "incorrect")
        assert rewritten.call_count == 2


def test_what_remains_are_names_versions_and_conditions() -> None:
    full = row(**SPEED, val_accuracy=0.9, max_error=1e-6, parameters=61706)
    bare = without_figures(full)
    assert bare.max_error == 1e-6
    assert bare.parameters == 61706
    assert bare.combination == full.combination
    assert bare.threads == full.threads


def test_every_column_of_speed_or_accuracy_is_a_figure() -> None:
    """A column that is new and measured would otherwise outlive its row; what the peaks allow is the device's."""
    measured = (
        "_ms",
        "_seconds",
        "step_ms_",
        "val_",
        "best_val_",
        "train_loss",
        "images_per_second",
        "gflops_per",
        "peak_",
    )
    for column in fields(Row):
        if column.name in (
            "roofline_step_ms",
            "process_seconds",
        ):  # of the network, and of the process as such
            continue
        if column.name.startswith(measured) or column.name.endswith(measured):
            assert column.name in FIGURES
