"""How a record becomes a line of CSV, and a line a record again."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from convbench.registry import UsageError
from convbench.results import Row
from convbench.results.cells import header, read_records, to_line
from result_rows import row, write


def there_and_back(path: Path, record: Row) -> Row:
    return read_records(write(path / "results.csv", [record]), Row)[0]


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    original = row(
        step_ms_median=12.3456789, val_accuracy=0.1, parameters=44426, epochs=0.4, notes='a "quoted", text'
    )
    assert there_and_back(tmp_path, original) == original


def test_a_number_keeps_nine_digits(tmp_path: Path) -> None:
    assert there_and_back(tmp_path, row(train_loss=1 / 3)).train_loss == pytest.approx(1 / 3, rel=1e-9)


@pytest.mark.parametrize("loss", [math.inf, -math.inf])
def test_an_infinite_loss_is_kept(tmp_path: Path, loss: float) -> None:
    assert there_and_back(tmp_path, row(train_loss=loss)).train_loss == loss


def test_a_loss_that_is_no_number_is_not_an_empty_cell(tmp_path: Path) -> None:
    loss = there_and_back(tmp_path, row(train_loss=math.nan)).train_loss
    assert loss is not None
    assert math.isnan(loss)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "'=1", "''-x"])
def test_a_formula_is_guarded_and_comes_back(tmp_path: Path, text: str) -> None:
    assert f",'{text}," in to_line(row(error=text))
    assert there_and_back(tmp_path, row(error=text)).error == text


@pytest.mark.parametrize("text", ["'quoted' name", "a=b", "naïve ✓"])
def test_a_plain_text_is_left_alone(tmp_path: Path, text: str) -> None:
    assert f",{text}," in to_line(row(error=text))
    assert there_and_back(tmp_path, row(error=text)).error == text


def test_a_negative_number_is_no_formula() -> None:
    assert ",-0.5," in to_line(row(val_loss=-0.5))


def test_an_error_of_many_lines_is_one_line() -> None:
    line = to_line(row(error="Traceback:\n\tline 1\r\n\x00\u2028=line 2"))
    assert line.count("\n") == 1
    assert ",Traceback: line 1 =line 2," in line


@pytest.mark.parametrize(("column", "value"), [("round", 1.5), ("steps", "x"), ("error", 3), ("suite", None)])
def test_a_value_that_does_not_fit_its_column_is_not_written(column: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_line(row(**{column: value}))


def test_a_cell_that_is_no_number_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "results.csv", [row(), row(steps=30)])
    path.write_text(path.read_text().replace(",30,", ",thirty,"))
    with pytest.raises(UsageError, match=r"line 3: column steps is 'thirty', not a whole number"):
        read_records(path, Row)


def test_an_older_file_without_later_columns_is_read(tmp_path: Path) -> None:
    written = {name: value for name, value in asdict(row()).items() if name != "notes"}
    path = tmp_path / "results.csv"
    place = header(Row).split(",").index("notes")
    lines = [line.split(",") for line in (header(Row) + to_line(row())).splitlines()]
    path.write_text("".join(",".join(line[:place] + line[place + 1 :]) + "\n" for line in lines))
    assert asdict(read_records(path, Row)[0]) == written | {"notes": None}


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(header(Row).replace("step_ms_median", "step_s_median"))
    with pytest.raises(UsageError, match=r"lacks the columns step_ms_median$"):
        read_records(path, Row)
