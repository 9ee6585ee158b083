"""A run from end to end on real images: the files it writes, and that every planned row is there."""

from __future__ import annotations

import csv
import itertools
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import misbehaving
from conftest import exhaustive
from convbench.registry import NothingRan, Recipe, UnknownName, UsageError
from convbench.results.schema import FILES, Combination, columns
from convbench.results.storage.store import RunStore
from convbench.suites import Suite, load_suite, run
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Budget, RecipeOverrides, Timing
from convbench.suites.processes.protocol import ImageFile
from convbench.suites.runner import schedule
from convbench.suites.runner.prepare import preview
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.run import RunResult
from convbench.suites.runner.schedule import Task
from convbench.suites.runner.task import RunContext

pytestmark = pytest.mark.usefixtures("preloaded_servers")

SUITE = Suite(
    name="small",
    dataset="fashion-mnist-sample",
    architectures=("lenet", "mlp"),
    backends=("im2col", "torch"),
    devices=("cpu",),
    batch_sizes=(128,),
    recipe=RecipeOverrides(lr=0.9, epochs=2),
    budget=Budget(train_seconds=0.5, timeout_seconds=250.0),
    timing=Timing(rounds=2, warmup_steps=1, steps=3, threads=1),
)
COMBINATIONS = set(itertools.product(SUITE.architectures, SUITE.backends))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(SUITE, out=tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    site = misbehaving.install(tmp_path / "site")
    with misbehaving.on_path(site):
        yield site


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_it_writes_these_files(result: RunResult) -> None:
    names = {path.name for path in result.path.iterdir() if not path.name.startswith(".")}
    assert names == {*FILES, "environment.json", "suite.toml", "table.md", "report.html", "run.log"}


@pytest.mark.parametrize("name", FILES)
def test_the_columns_are_those_of_the_schema(result: RunResult, name: str) -> None:
    assert lines(result.path / name)[0] == [column.name for column in columns(FILES[name])]


def test_every_planned_process_has_its_row(result: RunResult) -> None:
    slots = [(row.kind, row.round, row.architecture, row.backend) for row in result.rows]
    kinds = [("verify", 0), ("time", 0), ("time", 1), ("train", 0)]
    assert sorted(slots) == sorted((*kind, *pair) for kind in kinds for pair in COMBINATIONS)
    assert {row.status for row in result.rows} <= {"ok", "budget"}
    assert result.measured == result.rows


def test_rounds_are_interleaved_in_random_order_and_the_order_is_recorded(result: RunResult) -> None:
    assert [row.order for row in result.rows] == list(range(len(result.rows)))
    assert [row.started_at for row in result.rows] == sorted(str(row.started_at) for row in result.rows)
    orders = [
        [(row.architecture, row.backend) for row in result.rows if (row.kind, row.round) == ("time", number)]
        for number in range(2)
    ]
    assert all(set(order) == COMBINATIONS for order in orders)


def test_a_time_row_is_made_of_its_samples(result: RunResult) -> None:
    with RunStore.open(result.path) as store:
        samples = store.samples()
    for row in (row for row in result.rows if row.kind == "time"):
        own = [it for it in samples if (it.combination, it.round) == (row.combination, row.round)]
        assert [sample.step for sample in own] == [0, 1, 2]
        for sample in own:
            phases = (sample.data_ms, sample.forward_ms, sample.backward_ms, sample.optimizer_ms)
            assert sample.step_ms == pytest.approx(sum(phase or 0 for phase in phases), rel=1e-6)
        median = sorted(sample.step_ms or 0 for sample in own)[1]
        assert row.step_ms_median == pytest.approx(median)
        assert row.images_per_second == pytest.approx(128 / median * 1000)
        assert row.steps == 3
        assert row.step_ms_p10 is not None
        assert row.step_ms_p90 is not None
        assert row.step_ms_p10 <= median <= row.step_ms_p90
        assert row.gflops_per_second is not None
        assert row.step_flops_per_image is not None
        rate = row.images_per_second or 0
        assert row.gflops_per_second == pytest.approx(rate * row.step_flops_per_image / 1e9)


def test_the_environment_has_the_peaks_that_fractions_are_of(result: RunResult) -> None:
    peaks = json.loads((result.path / "environment.json").read_text())["peaks"]
    assert list(peaks) == ["cpu"]
    assert list(peaks["cpu"]) == ["float32"]
    for row in (row for row in result.rows if row.kind in ("time", "train")):
        assert row.roofline_fraction is not None
        assert row.roofline_fraction > 0


def test_rows_say_what_else_the_machine_did(result: RunResult) -> None:
    for row in result.rows:
        assert (row.context_switches is not None) == (row.kind != "verify")
        assert set((row.flags or "").split()) <= {"busy", "throttled", "drifting"}
        if row.kind == "time":
            assert row.compile_seconds is not None
            assert row.setup_seconds is not None
            assert 0 <= row.compile_seconds <= row.setup_seconds


class Told(Watcher):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.started: list[tuple[str, int, bool]] = []

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        self.begun = [len(tasks), kept]

    def start(self, task: Task) -> None:
        self.started.append((task.kind, task.round, task.optional))


@pytest.mark.parametrize(("precision", "rounds"), [(0.01, 4), exhaustive(0.5, 2)])
def test_rounds_go_on_until_the_interval_is_tight(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: float, rounds: int
) -> None:
    """Every interval is taken to be 10 % wide, whatever a busy machine makes of it."""
    monkeypatch.setattr(schedule, "rounds_suffice", lambda medians, precision: precision > 0.1)
    timing = {"timing.rounds": 2, "timing.max_rounds": 4, "timing.precision": precision}
    suite = misbehaving.suite("right", "raises").override(timing)
    told = Told()
    first = run(suite, out=tmp_path / "run", train=False, watcher=told)
    timed = {
        name: [row for row in first.rows if (row.backend, row.kind) == (name, "time")]
        for name in suite.backends
    }
    assert [row.round for row in timed["right"]] == list(range(rounds))
    assert [row.status for row in timed["raises"]] == ["error"] * 2  # what failed is not tried more often
    assert [row.order for row in first.rows] == sorted(row.order or 0 for row in first.rows)
    assert told.begun == [6, 0]
    assert [optional for *_, optional in told.started].count(True) == rounds - 2

    again = Told()
    resumed = run(suite, resume=tmp_path / "run", train=False, watcher=again)
    kept = [row for row in resumed.rows if (row.backend, row.kind) == ("right", "time")]
    assert kept == timed["right"]
    assert again.begun == [6, 3]


def test_more_rounds_can_be_added_to_a_run(site: Path, tmp_path: Path) -> None:
    first = run(misbehaving.suite("right", rounds=1), out=tmp_path / "run", train=False)
    more = run(misbehaving.suite("right", rounds=3), resume=tmp_path / "run", train=False)
    assert more.rows[:2] == first.rows
    assert [(row.kind, row.round) for row in more.rows] == [
        ("verify", 0),
        ("time", 0),
        ("time", 1),
        ("time", 2),
    ]


def test_an_evaluation_beyond_the_budget_is_announced_and_noted(site: Path, tmp_path: Path) -> None:
    told = misbehaving.Notes()
    short = misbehaving.suite("right").override({"budget.train_seconds": 1e-6})
    rows = run(short, out=tmp_path / "run", time=False, watcher=told).rows
    (row,) = (row for row in rows if row.kind == "train")
    assert row.status == "budget", row.error
    assert re.search(r"epochs within its budget of 1e-06 s; evaluated on 16 of \d+ images$", row.notes or "")
    label = "train tiny/right/cpu/float32/b16/contiguous/eager/s0"
    assert f"{label}: evaluating, for at most 1e-06 s" in told.texts


def test_a_train_row_is_the_end_of_its_curve(result: RunResult) -> None:
    with RunStore.open(result.path) as store:
        epochs = store.epochs()
    for row in (row for row in result.rows if row.kind == "train"):
        curve = [epoch for epoch in epochs if epoch.combination == row.combination]
        assert [epoch.epoch for epoch in curve] == sorted(epoch.epoch for epoch in curve)
        last = curve[-1]
        assert (last.epoch, last.steps, last.train_loss) == (row.epochs, row.steps, row.train_loss)
        assert last.val_accuracy == row.val_accuracy
        assert row.best_val_accuracy == max(epoch.val_accuracy or 0 for epoch in curve)
        assert row.status == ("ok" if row.epochs == 2 else "budget")
        assert (row.status == "budget") == ("within its budget of 0.5 s" in (row.notes or ""))
        rate = last.train_images_seen / last.train_seconds
        assert row.images_per_second == pytest.approx(rate, rel=1e-6)


def test_rows_carry_what_they_depend_on(result: RunResult) -> None:
    for row in result.rows:
        assert row.run_id == result.path.name
        assert (row.suite, row.threads, row.flush_denormal) == ("small", 1, 1)
        assert (row.dataset, row.train_images) == ("fashion-mnist-sample", 10_000)
        assert row.recipe == "lr=0.9 epochs=2 resize=none init=xavier_uniform"
        assert row.plugin == "convbench"
        for name in ("convbench_version", "torch_version", "device_name", "machine_id", "combination_key"):
            assert getattr(row, name), name
        assert row.parameters == {"lenet": 61706}.get(row.architecture, row.parameters)
    lenets = [row for row in result.rows if row.architecture == "lenet"]
    assert {(row.served, row.served_calls, row.served_flops_fraction) for row in lenets} == {
        ("conv2d 2/2, avg_pool2d 2/2", 4, 1.0)
    }
    assert all(0 < (row.max_error or 0) < 1e-4 for row in lenets)


def test_a_network_without_ops_of_the_contract_says_so(result: RunResult) -> None:
    notes = {row.notes for row in result.rows if (row.kind, row.architecture) == ("verify", "mlp")}
    assert notes == {"no op of the contract in this network"}


def test_the_environment_and_the_suite_are_written_down(result: RunResult) -> None:
    environment = json.loads((result.path / "environment.json").read_text())
    assert environment["machine_id"] == result.rows[0].machine_id
    resolved = load_suite(result.path / "suite.toml")
    memory = resolved.budget.memory_mb
    assert memory is not None
    assert resolved == SUITE.override({"budget.memory_mb": memory})


def test_the_table_names_every_backend_and_its_accuracy(result: RunResult) -> None:
    table = (result.path / "table.md").read_text()
    for name in (*SUITE.architectures, *SUITE.backends, "images/s"):
        assert name in table


def test_a_preview_plans_the_same_and_writes_nothing(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = misbehaving.suite("right", "absent").override({"dtypes": ["float32", "float64"]})
    before = set(tmp_path.rglob("*"))
    planned = preview(suite)
    assert [(entry.combination.backend, entry.combination.dtype, entry.obstacle) for entry in planned] == [
        ("absent", "float32", ("unavailable", "no such card")),
        ("absent", "float64", ("unavailable", "no such card")),
        ("right", "float32", None),
        ("right", "float64", ("unsupported", "backend 'right' runs on dtype float32, not float64")),
    ]
    assert {path for path in set(tmp_path.rglob("*")) - before if "__pycache__" not in str(path)} == set()


def test_nothing_measured_is_an_error_that_keeps_the_rows(site: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingRan, match=r"nothing could be measured; .*results\.csv says why"):
        run(misbehaving.suite("raises", "absent"), out=tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        assert {row.status for row in store.rows()} == {"error", "unavailable"}


def test_nothing_that_can_run_here_is_one_sentence_and_leaves_no_directory(
    site: Path, tmp_path: Path
) -> None:
    with pytest.raises(NothingRan) as refusal:
        run(misbehaving.suite("absent", "right").override({"dtypes": ("float64",)}), out=tmp_path / "run")
    assert str(refusal.value) == (
        "nothing can run here: absent: no such card; right: backend 'right' runs on dtype float32, not float64"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"backends": ("nome",)}, UnknownName, "unknown backend 'nome'"),
        ({"architectures": ("lenett",)}, UnknownName, "did you mean 'lenet'?"),
        ({"dataset": "mnist"}, UnknownName, "unknown dataset 'mnist'"),
    ],
)
def test_a_refused_run_leaves_no_directory(
    site: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], words: str
) -> None:
    suite = misbehaving.suite("right").override(change)
    with pytest.raises(error) as refusal:
        run(suite, out=tmp_path / "run")
    assert words in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_take_the_images_is_refused_in_one_sentence(site: Path, tmp_path: Path) -> None:
    suite = misbehaving.suite("right").override({"architectures": ("large",)})
    with pytest.raises(NothingRan) as refusal:
        run(suite, out=tmp_path / "run")
    assert re.fullmatch(
        r"nothing can run here: right: architecture 'large' is made for images of 3x32x32, and cannot take those "
        r"of tiny, 1x8x8 \(RuntimeError: mat1 and mat2 shapes cannot be multiplied[^)]*\)\); "
        r"--set recipe\.resize=\[32,32\] gives it images of its size",
        str(refusal.value),
    )
    assert not (tmp_path / "run").exists()

    obstacles = {
        entry.combination.architecture: entry.obstacle
        for entry in preview(suite.override({"architectures": ("tiny", "large", "any-size")}))
    }
    assert obstacles["tiny"] is obstacles["any-size"] is None
    assert obstacles["large"] is not None
    assert obstacles["large"][0] == "unsupported"
    resized = suite.override({"recipe.resize": (32, 32)})
    assert [entry.obstacle for entry in preview(resized)] == [None]
    wrong = suite.override({"recipe.resize": (16, 20)})
    ((_, reason),) = [entry.obstacle for entry in preview(wrong) if entry.obstacle]
    assert "those of tiny, 1x8x8, resized to 16x20 (" in reason


def test_a_total_budget_leaves_out_by_name_and_a_larger_one_goes_on(site: Path, tmp_path: Path) -> None:
    """The first is spent before anything can begin; with the second there is time for all of it."""
    suite = misbehaving.suite("right", "raises", rounds=2).override({"budget.total_seconds": 0.001})
    told = misbehaving.Notes()
    with pytest.raises(NothingRan, match="nothing could be measured"):
        run(suite, out=tmp_path / "run", watcher=told)
    reason = "verification left out: the total budget of 0 s was spent"
    with RunStore.open(tmp_path / "run") as store:
        rows = store.rows()
    assert len(rows) == 8
    assert all(row.left_out and row.notes == reason for row in rows)
    assert [row.order for row in rows] == list(range(8))
    labels = list(dict.fromkeys(row.combination.label for row in rows))
    assert told.texts[-1] == f"{', '.join(labels)}: {reason}"
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.count(reason) == 1  # once for both backends
    assert "Interrupted" not in table

    again = run(suite.override({"budget.total_seconds": 600.0}), resume=tmp_path / "run")
    assert len(again.rows) == 8
    assert {row.status for row in again.rows if row.backend == "right"} == {"ok"}
    assert {row.status for row in again.rows if row.backend == "raises"} == {"error"}
    assert all(row.process_seconds for row in again.measured)


def test_a_job_has_the_share_of_the_total_budget() -> None:
    suite = misbehaving.suite("right")
    task = Task(
        Planned(Combination("tiny", "right", "cpu", "float32", 16, "", "eager", 0), Recipe()),
        "train",
        0,
        0,
        "",
    )
    suite = suite.override({"timing.threads": 1})
    none = SimpleNamespace(distributions=lambda name: ())
    facts = SimpleNamespace(registry=SimpleNamespace(backends=none, architectures=none))
    unused: Any = SimpleNamespace(images=ImageFile("tiny", {}), facts=facts)
    for share, seconds in ((None, (20.0, 60.0)), (7.5, (7.5, 7.5))):
        context = RunContext(suite, unused, {}, 10, unused, unused, Watcher())
        job = context.job(replace(task, share=share))
        assert (job.timing.max_seconds, job.train_seconds) == seconds


def test_two_runs_at_once_have_a_directory_each(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results: list[RunResult] = []

    def one() -> None:
        results.append(run(misbehaving.suite("right")))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=250)
    assert len({result.path for result in results}) == 2
    for result in results:
        assert [row.status for row in result.rows] == ["ok", "ok", "ok"]
        assert {row.run_id for row in result.rows} == {result.path.name}


def test_a_directory_that_holds_a_run_is_not_written_again(site: Path, tmp_path: Path) -> None:
    first = run(misbehaving.suite("right"), out=tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already; --resume"):
        run(misbehaving.suite("right"), out=tmp_path / "run")
    assert RunStore.open(first.path).rows() == list(first.rows)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [({"train": False}, {"verify", "time"}), ({"time": False}, {"verify", "train"})],
)
def test_kinds_can_be_left_out_and_the_directory_be_named_by_suite_and_time(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kinds: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = run(misbehaving.suite("right"), **options)
    assert {row.kind for row in finished.rows} == kinds
    assert finished.path.parent == Path("results")
    assert re.fullmatch(r"fakes-\d{8}T\d{6}Z", finished.path.name)
