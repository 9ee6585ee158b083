"""What a run records: the columns other people's scripts rely on, and their documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convbench.registry import UsageError
from convbench.results.analysis.standings import comparison_table
from convbench.results.schema import FILES, Row, Summary, column, columns
from convbench.results.tables.documentation import with_columns
from result_rows import LENET, row

LINES = """
run_id suite kind round status error
architecture backend device dtype batch_size memory_format mode seed threads
dataset train_images epochs steps train_seconds images_per_second
step_ms_median step_ms_p10 step_ms_p90 forward_ms backward_ms optimizer_ms data_ms setup_seconds
train_loss val_loss val_accuracy best_val_accuracy peak_memory_mb
parameters flops_per_image gflops_per_second roofline_fraction
served_calls served_flops_fraction max_error
convbench_version plugin plugin_version torch_version device_name machine_id started_at
"""
DOCUMENTED = [name for line in LINES.splitlines() for name in line.split()]


def test_the_documented_columns_come_first_and_in_order() -> None:
    names = [column.name for column in columns(Row)]
    assert names[: len(DOCUMENTED)] == DOCUMENTED
    assert [column.name for column in columns(Row) if not column.later] == DOCUMENTED


@pytest.mark.parametrize("name", FILES)
def test_every_column_is_described(name: str) -> None:
    assert all(len(column.description) > 5 for column in columns(FILES[name]))


def test_the_readme_shows_the_columns_as_they_are() -> None:
    readme = Path(__file__).parents[2] / "results" / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert text == with_columns(text), f"stale: run python -m convbench.results.tables.documentation {readme}"


def test_a_readme_without_a_place_for_the_columns_is_refused() -> None:
    with pytest.raises(UsageError, match="no place for the columns"):
        with_columns("# results")


def test_a_combination_has_a_label_and_its_row_gives_it_back() -> None:
    assert LENET.label == "lenet/im2col/cpu/float32/b128/contiguous/eager/s0"
    assert row().combination == LENET


@pytest.mark.parametrize(("column", "value"), [("status", "fine"), ("kind", "measure")])
def test_an_unknown_status_or_kind_is_no_row(column: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{column} is '{value}', not one of"):
        row(**{column: value})


def test_storing_and_showing_rows_does_without_pandas_and_torch() -> None:
    code = """
import sys
from convbench.results import Row, RunStore, table_markdown
import convbench.results.cli.compare, convbench.results.storage.environment
print([name for name in ("torch", "pandas", "altair", "numpy", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("record", [*FILES.values(), Summary])
def test_a_column_names_itself_and_formats_its_values(record: type) -> None:
    headings = [each.heading for each in columns(record)]
    assert len(set(headings)) == len(headings)
    assert all(each.text(None) == "–" for each in columns(record))


@pytest.mark.parametrize(
    ("name", "heading", "value", "text"),
    [
        ("step_ms", "step, ms", 12.3456, "12.3"),
        ("images_per_second", "images/s", 12345.6, "12,346"),
        ("speedup", "x torch", 1.2345, "1.23×"),
        ("val_accuracy", "accuracy", 0.87654, "0.877"),
        ("coverage", "coverage", 0.9999, "99.9 %"),
        ("max_error", "max error", 1.234e-6, "1.2e-06"),
        ("backend", "backend", "im2col", "im2col"),
    ],
)
def test_headings_and_numbers_are_those_that_people_read(
    name: str, heading: str, value: object, text: str
) -> None:
    found = column(Summary, name)
    assert (found.heading, found.text(value)) == (heading, text)


def test_a_summary_is_flat_and_over_all_processes() -> None:
    rows = [row(backend=name, kind="time", round=at, step_ms_median=ms + at, status="ok")
            for name, ms in (("torch", 10.0), ("im2col", 20.0)) for at in range(3)]  # fmt: skip
    first, second = comparison_table(rows).lines
    assert (first.backend, second.backend, second.processes) == ("torch", "im2col", 3)
    assert second.speedup == pytest.approx((first.step_ms or 0) / (second.step_ms or 1))
