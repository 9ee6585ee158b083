"""Reading results.csv files, also those that somebody edited, cut or mistook."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from convbench.registry import UsageError
from convbench.results import read_results
from result_rows import row, timed, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(
        tmp_path / "run" / "results.csv", [*timed([1.5, 2.5], steps=30), row(kind="train", steps=30)]
    )


def test_numbers_texts_and_gaps_have_their_types(path: Path) -> None:
    frame = read_results(path)
    assert len(frame) == 3
    assert frame["step_ms_median"].tolist()[:2] == [1.5, 2.5]
    assert str(frame["step_ms_median"].dtype) == "float64"
    assert str(frame["steps"].dtype) == "Int64"
    assert str(frame["backend"].dtype) == "string"
    assert frame["step_ms_median"].isna().tolist() == [False, False, True]
    assert frame["error"].isna().all()


def test_a_run_directory_and_several_files_are_read(path: Path) -> None:
    assert len(read_results(path.parent)) == 3
    assert len(read_results([path, str(path.parent)])) == 6


def test_guarded_texts_are_restored_and_na_is_a_text(tmp_path: Path) -> None:
    frame = read_results(write(tmp_path / "results.csv", [row(error="=1+1"), row(error="NA"), row()]))
    assert frame["error"].tolist()[:2] == ["=1+1", "NA"]
    assert frame["error"].isna().tolist() == [False, False, True]


def test_columns_of_others_are_kept_and_later_ones_may_be_missing(path: Path) -> None:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    place = lines[0].index("notes")
    for line in lines:
        line[place] = "mine" if line is not lines[0] else "remark"
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    frame = read_results(path)
    assert frame["remark"].tolist() == ["mine"] * 3
    assert frame["notes"].isna().all()


def test_a_file_that_a_spreadsheet_saved_is_read(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_results(path)["round"].tolist() == [0, 1, 0]


def test_a_last_line_cut_short_is_left_out_with_a_warning(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="the last line is cut short"):
        assert len(read_results(path)) == 2


def test_a_whole_file_gives_no_warning(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_results(path)


def test_a_file_of_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert read_results(write(tmp_path / "results.csv", [])).empty


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.csv does not exist$"):
        read_results(tmp_path / "nowhere.csv")


def test_a_directory_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a directory without a results\.csv"):
        read_results(tmp_path)


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no results file was given"):
        read_results([])


def test_an_empty_file_is_refused(path: Path) -> None:
    path.write_text("")
    with pytest.raises(UsageError, match="is empty"):
        read_results(path)


def test_missing_columns_are_named(path: Path) -> None:
    edit(path, "step_ms_median,", "step_ms,")
    with pytest.raises(UsageError, match=r"lacks the columns step_ms_median$"):
        read_results(path)


def test_another_kind_of_file_is_recognised(path: Path) -> None:
    path.write_text("name,price\nbread,3\n")
    with pytest.raises(UsageError, match=r"is not a results\.csv: its columns are name, price"):
        read_results(path)


def test_a_column_that_is_there_twice_is_refused(path: Path) -> None:
    edit(path, ",notes,", ",error,")
    with pytest.raises(UsageError, match="has the columns error twice"):
        read_results(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",2.5,", ",fast,", r"line 3: column step_ms_median is 'fast', not a number"),
        (",30,,,1.5,", ",3.5,,,1.5,", r"line 2: column steps is '3.5', not a whole number"),
        (",train,0,ok,", ",train,0,fine,", r"line 4: status is 'fine', not one of ok, budget"),
        (",train,0,ok,", ",trian,0,ok,", r"line 4: kind is 'trian', not one of verify"),
        (",train,0,ok,", ",train,,ok,", r"line 4: column round is empty"),
        (",train,0,ok,", ",train,ok,", r"line 4: \d+ cells instead of \d+"),
        (",train,0,ok,", ",train,0,0,ok,", r"line 4: \d+ cells instead of \d+"),
    ],
)
def test_a_cell_that_does_not_fit_is_named_with_line_and_column(
    path: Path, old: str, new: str, message: str
) -> None:
    edit(path, old, new)
    with pytest.raises(UsageError, match=message):
        read_results(path)


@pytest.mark.parametrize("place", ["backend", "header"])
def test_bytes_that_are_no_utf_8_are_refused(path: Path, place: str) -> None:
    old, new = (b"im2col", b"im2c\xff") if place == "backend" else (b"run_id", b"run_\xff")
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_results(path)
