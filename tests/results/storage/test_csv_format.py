"""How a record becomes a line of CSV, and a line a record again."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

from convbench.registry import UsageError
from convbench.results import Row, Sample, read_results
from convbench.results.storage.csv_format import header, read_records, step_times, to_line
from result_rows import row, samples, write


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


def test_an_error_of_many_lines_is_one_line(tmp_path: Path) -> None:
    error = "Traceback:\n\tline 1\r\n\x00\x1b[31m\u2028=line 2 \\n of C:\\new "
    line = to_line(row(error=error))
    assert line.count("\n") == len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert r",Traceback:\n\tline 1\r\n\x00\x1b[31m\u2028=line 2 \\n of C:\\new ," in line
    assert there_and_back(tmp_path, row(error=error)).error == error


def formulas(text: str, delimiter: str) -> list[str]:
    """The cells of a line that a spreadsheet would run, numbers apart, as it cuts the line itself."""
    cells = [
        cell.strip("\"' ") if cell[:1] != "'" else cell
        for cell in next(csv.reader([text], delimiter=delimiter))
    ]
    return [
        cell for cell in cells if cell[:1] in "=+-@＝＋－＠\t\r" and not re.fullmatch(r"[-+]?[\d.e-]+|", cell)
    ]


HOSTILE = [
    "=1+1",
    "=cmd|'/C calc'!A0",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    " =1+1",
    '"=1+1',
    '""=1+1"',
    "a;=1+1;b",
    'a;"=1+1"',
    "a; -1+cmd",
    ";=1",
    "＝1+1",
    "x\n;=1+1",
    "'=1",
    "''\"' =1;'=2;''=3",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_run_by_a_spreadsheet_however_it_cuts_a_line(tmp_path: Path, text: str) -> None:
    record = row(error=text, backend=text, notes=text)
    for delimiter in ",;\t":
        assert formulas(to_line(record).rstrip("\n"), delimiter) == []
    assert there_and_back(tmp_path, record) == record


def test_without_a_guard_they_would_be_run() -> None:
    assert formulas("x,=1+1", ",") == ["=1+1"]
    assert formulas('x,"a;=1+1;b"', ";") == ["=1+1"]
    assert formulas("x,-1.5e-07", ",") == []


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    random = Random(0)
    parts = [
        "=",
        "+",
        "-",
        "@",
        "'",
        '"',
        ";",
        ",",
        "\\",
        "n",
        "x41",
        "u0041",
        "\n",
        "\r",
        "\t",
        "\x1b",
        " ",
        "a",
        "é",
    ]
    texts = ["".join(random.choices(parts, k=random.randint(1, 8))) for _ in range(3000)]
    path = write(tmp_path / "results.csv", [row(error=text, backend=text) for text in texts])
    assert [(each.error, each.backend) for each in read_records(path, Row)] == [
        (text, text) for text in texts
    ]
    frame = read_results(path)
    assert frame["error"].tolist() == texts
    assert frame["backend"].astype(object).tolist() == texts


def test_curves_and_samples_are_as_safe(tmp_path: Path) -> None:
    for record in samples([-1.5], backend="=1+1"):
        line = to_line(record)
        assert ",'=1+1," in line
        assert line.endswith(",-1.5,1,\n")  # with the world size, and no all-reduce


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
    with pytest.raises(
        UsageError, match=r"column step_ms_median \('step_s_median' is there; is it the same in ms\?\)"
    ):
        read_records(path, Row)


def test_a_last_line_cut_short_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "results.csv", [row(), row(combination_key="abc")])
    path.write_bytes(path.read_bytes()[:-1])  # all cells are there, and the last one may lack a digit
    with pytest.warns(UserWarning, match="the last line is cut short"):
        assert read_records(path, Row) == [row()]
    target = tmp_path / "samples.csv"
    target.write_text(header(Sample) + "".join(map(to_line, samples([1.25, 2.25])))[:-2])
    with pytest.warns(UserWarning, match="the last line is cut short"):
        assert list(step_times(target).values()) == [[1.25]]


def test_a_round_that_is_written_in_two_ways_is_one(tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    lines = [*map(to_line, samples([1.25, 2.25])), *map(to_line, samples([3.25]))]
    path.write_text(header(Sample) + "".join(lines[:2]) + lines[2].replace(",0,", ", 0,"))
    assert list(step_times(path).values()) == [[1.25, 2.25, 3.25]]
