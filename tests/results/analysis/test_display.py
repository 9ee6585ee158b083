"""Results show themselves: a short text, a table in a notebook, a DataFrame."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from convbench.registry import UsageError, discover
from convbench.registry.conformance.report import Outcome, Report
from convbench.results import compare
from convbench.results.schema import Summary, columns
from convbench.suites import RunResult
from result_rows import row, timed, trained, write

MARKUP = "<script>alert(1)</script>"


@pytest.fixture
def result() -> RunResult:
    rows = [*timed([10.0, 10.1, 9.9], backend="torch"), *timed([20.0, 20.1, 19.9]), *trained([0.7])]
    failed = row(backend=MARKUP, status="crashed", error="gone")
    return RunResult(Path("results/mine"), (*rows, failed))


def test_a_run_is_one_line_and_a_table_with_a_row_for_each_combination(result: RunResult) -> None:
    assert repr(result) == "run in results/mine: 2 ok, 1 crashed"
    table = result.table()
    assert list(table.columns) == [each.name for each in columns(Summary)]
    assert list(table["backend"]) == ["torch", "im2col", MARKUP]
    assert table["step_ms"][1] == pytest.approx(20, rel=0.01)
    assert table["speedup_low"][1] < 0.5 < table["speedup_high"][1]
    assert table["val_accuracy"][1] == 0.7
    assert table.dtypes["processes"] == "Int64"


def test_a_notebook_shows_headings_and_numbers_for_people(result: RunResult) -> None:
    page = result._repr_html_()
    assert "run in results/mine" in page
    assert "<th>x torch</th>" in page
    assert "<td>0.500×</td>" in page
    assert "GFLOP/s" not in page  # nothing was counted
    assert "<script>" not in page


def test_an_empty_run_shows_itself() -> None:
    empty = RunResult(Path("results/none"), ())
    assert repr(empty) == "run in results/none: nothing was measured"
    assert len(empty.table()) == 0
    assert "nothing was measured" in empty._repr_html_()


def test_a_comparison_shows_itself(tmp_path: Path) -> None:
    base = write(tmp_path / "base" / "results.csv", [*timed([10.0, 10.1, 9.9]), *timed([1.0], backend="old")])
    found = compare(base, write(tmp_path / "new" / "results.csv", timed([12.0, 12.1, 11.9])))
    assert repr(found) == "base and new: 1 slower, 1 not compared"
    table = found.table()
    assert list(table["measure"]) == ["step_ms"]
    assert list(table["backend"]) == ["im2col"]
    assert table["ratio"][0] == pytest.approx(1.2, rel=1e-3)
    page = found._repr_html_()
    assert "<th>verdict</th>" in page
    assert "only in base" in page


def texts_of(chart: Any) -> set[str]:
    """The texts that a chart draws, as Vega-Lite converts it."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    return set(re.findall(r">([^<>]+)</", svg))


def test_a_run_and_a_comparison_draw_their_charts(result: RunResult, tmp_path: Path) -> None:
    assert texts_of(result.plot()) >= {"Training throughput", "torch", "im2col"}
    base = write(tmp_path / "base" / "results.csv", timed([10.0, 10.1, 9.9]))
    found = compare(base, write(tmp_path / "new" / "results.csv", timed([12.0, 12.1, 11.9])))
    assert texts_of(found.plot()) >= {"Step time, new over base", "1.20×"}
    with pytest.raises(UsageError, match="nothing to draw"):
        RunResult(Path("results/none"), ()).plot()


def test_a_report_shows_failures_first() -> None:
    outcomes = [
        Outcome("conv2d", "a case", "float32", "cpu", "passed"),
        Outcome("conv2d", "another", "float32", "cpu", "failed", MARKUP),
    ]
    report = Report("mine", tuple(outcomes))
    assert repr(report) == "mine did not pass: 1 passed, 1 failed"
    assert list(report.table()["state"]) == ["failed", "passed"]
    absent = Report("mine", (Outcome("conv2d", "a case", "float32", "cuda", "unsupported"),))
    assert repr(absent) == "mine answered no case: 1 unsupported"
    assert "<script>" not in report._repr_html_()


@pytest.mark.parametrize("kind", ["backends", "architectures", "datasets", "suites"])
def test_a_catalog_lists_what_is_registered(kind: str) -> None:
    catalog = getattr(discover(installed=()), kind)
    table = catalog.table()
    assert list(table["name"]) == list(catalog)
    assert set(table["plugin"]) == {"convbench"}
    assert repr(catalog).startswith(f"{len(catalog)} {kind}: ")
    assert len(repr(catalog)) < 300
    assert "<table" in catalog._repr_html_()
