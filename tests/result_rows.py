"""Rows as a run writes them, for the tests of the results room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from convbench.results import Combination, Comparison, Row, Sample, compare
from convbench.results.storage.csv_format import header, to_line

LENET = Combination("lenet", "im2col", "cpu", "float32", 128, "contiguous", "eager", 0)
CONDITIONS = {
    "threads": 2,
    "dataset": "fashion-mnist",
    "train_images": 60000,
    "torch_version": "2.11.0+cpu",
    "device_name": "A processor",
    "machine_id": "0123456789ab",
    "recipe": "lr=0.1 epochs=10",
}

BASE = [10.0, 10.1, 9.9]
SLOWER = [12.0, 12.1, 11.9]
QUIET = [10.0, 10.01, 9.99]


def row(**values: Any) -> Row:
    """A row of LENET, with what is given in place of its own."""
    usual = {"run_id": "run", "suite": "lenet", "kind": "time", "round": 0, "status": "ok"}
    return Row(**(usual | vars(LENET) | CONDITIONS | values))


def timed(step_ms: Sequence[float], **values: Any) -> list[Row]:
    """A `time` row per process."""
    return [row(round=index, step_ms_median=each, **values) for index, each in enumerate(step_ms)]


def trained(accuracies: Sequence[float], **values: Any) -> list[Row]:
    """A `train` row per seed."""
    values = {"epochs": 10.0, **values}
    return [row(kind="train", seed=seed, val_accuracy=each, **values) for seed, each in enumerate(accuracies)]


def samples(step_ms: Sequence[float], **values: Any) -> list[Sample]:
    """A sample per step of one process."""
    usual = {"run_id": "run", "round": 0, **vars(LENET), **values}
    return [Sample(**usual, step=index, step_ms=each) for index, each in enumerate(step_ms)]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """A results.csv of these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header(Row) + "".join(map(to_line, rows)), encoding="utf-8")
    return path


def comparing(directory: Path) -> Callable[..., Comparison]:
    """Compares lists of rows as if they were files."""

    def compare_rows(*sides: Iterable[Row], **options: Any) -> Comparison:
        paths = [write(directory / f"run{index}" / "results.csv", side) for index, side in enumerate(sides)]
        return compare(*paths, **options)

    return compare_rows
