"""Files of a run with arbitrary damage: read rightly, or refused in a sentence."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from convbench.registry import ConvbenchError, UsageError
from convbench.results import Row, RunStore, Sample, compare, read_results
from convbench.results.analysis.contents import read_contents
from convbench.results.report.write import write_all
from convbench.results.schema import columns
from convbench.results.storage.csv_format import read_records, step_times
from convbench.results.storage.pytest_benchmark import read_pytest_benchmark, write_pytest_benchmark
from fuzzing import NASTY, edited_json, edited_text, fuzzed
from synthetic_run import synthetic_run

with TemporaryDirectory() as made:
    SOUND = {
        path.name: path.read_bytes()
        for path in synthetic_run(
            Path(made) / "run", {"torch": 10.0, "im2col": 24.0}, processes=2, steps=3
        ).iterdir()
        if path.is_file()
    }
    (Path(made) / "json").mkdir()
    BENCHMARKS = json.loads(
        write_pytest_benchmark(Path(made) / "run", Path(made) / "json" / "b.json").read_text()
    )
ENVIRONMENT = json.loads(SOUND["environment.json"]) if "environment.json" in SOUND else {"cores": 2}


def damaged(directory: str, name: str, content: str) -> Path:
    """The sound run with another content of one file."""
    run = Path(directory) / "run"
    run.mkdir()
    for each, data in SOUND.items():
        (run / each).write_bytes(data)
    (run / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    return run


@st.composite
def edited_cells(draw: DrawFn, name: str) -> str:
    """A CSV file in which a few cells hold something else."""
    lines = list(csv.reader(io.StringIO(SOUND[name].decode())))
    for _ in range(draw(st.integers(1, 2))):
        row = draw(st.integers(1, len(lines) - 1))
        lines[row][draw(st.integers(0, len(lines[row]) - 1))] = draw(st.sampled_from(NASTY))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def any_damage(name: str) -> Any:
    return edited_cells(name) | edited_text(SOUND[name].decode())


def values_of(row: Row) -> Iterator[Any]:
    for column in columns(Row):
        yield getattr(row, column.name)


def same(one: Any, other: Any) -> bool:
    """Whether a cell of the table is the value of a row; a missing one is None or NaN."""
    if pd.isna(one) or other is None:
        return bool(pd.isna(one)) and (other is None or other != other)
    if hasattr(one, "isoformat"):
        return True  # a time, which a row has as its text
    return (
        str(one) == other if isinstance(other, str) else math.isclose(float(one), float(other), rel_tol=1e-15)
    )


@fuzzed(25, 400, content=any_damage("results.csv"))
def test_both_readers_of_rows_agree(content: str) -> None:
    """A damaged number is not read as a good one: two readers with nothing in common have the same value of it."""
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = damaged(directory, "results.csv", content) / "results.csv"
        rows = frame = None
        refusal = ""
        with suppress(UsageError):
            rows = read_records(path, Row)
        try:
            frame = read_results(path)
        except UsageError as error:
            refusal = str(error)
        if rows is None or frame is None:  # a row has its start as a text
            assert rows is frame or "column started_at is" in refusal, refusal or "one reader refuses it"
            return
        assert len(rows) == len(frame)
        for at, row in enumerate(rows):
            for column, value in zip(columns(Row), values_of(row), strict=True):
                assert same(frame[column.name].iloc[at], value), (
                    column.name,
                    frame[column.name].iloc[at],
                    value,
                )


@fuzzed(8, 80, content=any_damage("results.csv"))
def test_a_damaged_table_is_compared_or_refused(content: str) -> None:
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = damaged(directory, "results.csv", content)
        try:
            compare(run, run).table()
        except ConvbenchError:
            pass


@fuzzed(20, 300, content=any_damage("samples.csv"))
def test_damaged_samples_are_read_or_refused(content: str) -> None:
    with TemporaryDirectory() as directory:
        path = damaged(directory, "samples.csv", content) / "samples.csv"
        try:
            records = read_records(path, Sample)
            times = step_times(path)
        except UsageError:
            return
        assert sum(map(len, times.values())) == len(records)
        assert all(0 < each < math.inf for found in times.values() for each in found)


@pytest.mark.parametrize("name", ["results.csv", "samples.csv", "curves.csv"])
@pytest.mark.exhaustive
def test_a_damaged_run_is_continued_or_refused(name: str) -> None:
    @fuzzed(60, 60, content=any_damage(name))
    def continued(content: str) -> None:
        with TemporaryDirectory() as directory:
            run = damaged(directory, name, content)
            try:
                RunStore.open(run).close()
            except ConvbenchError:
                pass

    continued(60)


@fuzzed(1, 4, name=st.sampled_from(["results.csv", "samples.csv", "curves.csv"]), data=st.data())
def test_a_damaged_run_is_reported_on_or_refused(name: str, data: Any) -> None:
    content = data.draw(any_damage(name))
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            write_all(damaged(directory, name, content))
        except ConvbenchError:
            pass


@fuzzed(25, 150, content=edited_json(BENCHMARKS))
def test_a_damaged_benchmark_file_is_read_or_refused(content: Any) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "b.json"
        path.write_text(json.dumps(content))
        try:
            frame = read_pytest_benchmark([path])
        except UsageError:
            return
        assert (frame["step_ms_median"].astype(float) > 0).all()
        try:
            compare(path, path).table()
        except ConvbenchError:
            pass


@fuzzed(25, 300, text=edited_text(json.dumps(BENCHMARKS, indent=1)))
def test_a_benchmark_file_of_any_text_is_read_or_refused(text: str) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "b.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            compare(path, path)
        except ConvbenchError:
            pass


@fuzzed(25, 150, content=edited_json(ENVIRONMENT))
def test_a_damaged_environment_is_left_out(content: Any) -> None:
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_contents(damaged(directory, "environment.json", json.dumps(content)))
        except ConvbenchError:
            pass
