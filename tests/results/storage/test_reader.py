"""Reading results.csv files, also those that somebody edited, cut or mistook."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convbench.registry import UsageError
from convbench.results import Row, read_results
from convbench.results.schema import KINDS, STATUSES, columns
from convbench.results.storage import reader
from convbench.results.storage.csv_format import read_records
from convbench.results.storage.files import opened
from convbench.results.storage.reader import Lines, dtype
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
    assert str(frame["backend"].dtype) == "category"
    assert str(frame["error"].dtype) == "string"
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
    with pytest.raises(
        UsageError, match=r"lacks the column step_ms_median \('step_ms' is there; is it the same in ms\?\)"
    ):
        read_results(path)


def test_another_kind_of_file_is_recognised(path: Path) -> None:
    path.write_text("name,price\nbread,3\n")
    with pytest.raises(UsageError, match=r"is not a results\.csv: its columns are name, price"):
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


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "latin-1": (lambda data: data.replace(b"im2col", b"im2c\xe9", 1), r"line 2: byte 0xe9 is not UTF-8 text"),
    "a header in latin-1": (
        lambda data: data.replace(b"run_id", b"run_\xe9"),
        r"line 1: byte 0xe9 is not UTF-8",
    ),
    "utf-16": (lambda data: data.decode().encode("utf-16"), "is UTF-16 text: save it in UTF-8"),
    "utf-32": (lambda data: data.decode().encode("utf-32"), "is UTF-32 text: save it in UTF-8"),
    "utf-16 without its mark": (lambda data: data.decode().encode("utf-16-le"), "is UTF-16 text"),
    "NUL bytes": (lambda data: data.replace(b"im2col", b"im2\0col", 1), "a NUL byte, which no text has"),
    "NUL bytes instead of lines": (lambda data: data + b"\0" * 100 + b"\n", "a NUL byte, which no text has"),
    "a NUL byte in the header": (lambda data: data.replace(b"gflops", b"gfl\0ops", 1), "line 1: a NUL byte"),
    "binary": (lambda data: b"\0" * 100, "is not text"),
    "semicolons": (lambda data: data.replace(b",", b";"), "has its columns separated by semicolons"),
    "tabs": (
        lambda data: data.replace(b",", b"\t"),
        "has its columns separated by tabs; save it with commas",
    ),
    "carriage returns": (lambda data: data.replace(b"\n", b"\r"), "its lines end in carriage returns alone"),
    "gzip": (gzip.compress, "is compressed by gzip: unpack it first"),
    "a workbook": (lambda data: b"PK\x03\x04" + data, "is a zip archive or a workbook"),
    "two files in one": (lambda data: data + data, "line 5: a second header; files that were joined"),
    "a line too short": (lambda data: data[:-2] + b"\n", r"line 4: \d+ cells instead of \d+"),
    "a line too long": (lambda data: data[:-1] + b",\n", r"line 4: \d+ cells instead of \d+"),
    "a column twice": (lambda data: data.replace(b",notes,", b",error,"), "has the column 'error' twice"),
    "an open quote": (
        lambda data: data.replace(b",lenet,", b',"lenet,', 1),
        r"line \d: \d+ cells instead of",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize(
    "read", [read_results, lambda path: read_records(path, Row)], ids=["pandas", "records"]
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(
    path: Path, what: str, read: Callable[[Path], Any]
) -> None:
    change, message = BROKEN[what]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_mixed_line_endings_are_read(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\r\n".join(lines[:2]) + b"\n" + b"\r\n".join(lines[2:]))
    assert read_results(path)["round"].tolist() == [0, 1, 0]
    assert [row.round for row in read_records(path, Row)] == [0, 1, 0]


@pytest.mark.parametrize("size", range(1, 20))
def test_blocks_may_end_anywhere(path: Path, size: int) -> None:
    data = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(data)
    with opened(path, Row) as file:
        lines = Lines(file)
        blocks = list(iter(lambda: lines.read(size), b""))
    assert b"".join(blocks) == data.partition(b"\n")[2].replace(b"\r\n", b",.\n")


def test_a_line_feed_in_a_cell_of_others_is_read(path: Path) -> None:
    edit(path, ",train,0,ok,,", ',train,0,ok,"one\ntwo, three,.\nfour",')
    assert read_results(path)["error"].tolist()[2] == "one\ntwo, three,.\nfour"
    assert read_records(path, Row)[2].error == "one\ntwo, three,.\nfour"


def test_texts_that_others_wrote_in_two_ways_are_one(path: Path) -> None:
    edit(path, ",train,0,ok,,lenet,", r",train,0,ok,,\x6cenet,")
    frame = read_results(path)
    assert frame["architecture"].tolist() == ["lenet"] * 3
    assert frame["architecture"].cat.categories.tolist() == ["lenet"]


def test_every_column_has_the_type_that_is_documented(path: Path) -> None:
    frame = read_results(path)
    assert frame.dtypes.astype(str).to_dict() == {
        column.name: dtype(column.name, column) for column in columns(Row)
    }
    assert frame["kind"].cat.categories.tolist() == list(KINDS)
    assert frame["status"].cat.categories.tolist() == list(STATUSES)


def test_times_are_points_in_time(tmp_path: Path) -> None:
    times = ["2026-01-01T00:00:00+00:00", "2026-01-02T12:30:00+00:00", None]
    path = write(tmp_path / "results.csv", [row(started_at=each) for each in times])
    found = read_results(path)["started_at"]
    assert (found[1] - found[0]).total_seconds() == 36.5 * 3600
    assert found.isna().tolist() == [False, False, True]
    edit(path, "2026-01-02T12:30", "yesterday")
    with pytest.raises(UsageError, match=r"column started_at is 'yesterday:00.*', not a time in ISO 8601"):
        read_results(path)


def test_files_of_unlike_backends_are_joined_as_categories(tmp_path: Path) -> None:
    paths = [write(tmp_path / name / "results.csv", [row(backend=name)]) for name in ("b", "a")]
    frame = read_results(paths)
    assert frame["backend"].tolist() == ["b", "a"]
    assert frame["backend"].cat.categories.tolist() == ["a", "b"]
    assert frame.dtypes.astype(str).to_dict() == {
        column.name: dtype(column.name, column) for column in columns(Row)
    }


def test_columns_can_be_chosen(path: Path) -> None:
    frame = read_results(path, columns=["backend", "step_ms_median"])
    assert sorted(frame.columns) == ["backend", "step_ms_median"]
    with pytest.raises(UsageError, match="has no column 'speed'"):
        read_results(path, columns=["speed"])


def test_plain_pandas_reads_the_same_numbers(path: Path) -> None:
    import pandas as pd

    plain, ours = pd.read_csv(path), read_results(path)
    for column in columns(Row):
        kind = plain[column.name].dtype.kind
        if ours[column.name].notna().any() and column.type is not str:
            assert kind in "if", column.name
            assert plain[column.name].tolist() == pytest.approx(
                ours[column.name].astype(float).tolist(), nan_ok=True
            )
    assert plain["backend"].tolist() == ours["backend"].tolist()


def test_what_does_not_fit_into_memory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SMALL", 0)
    monkeypatch.setattr(reader, "available_memory_gb", lambda: 1e-6)
    with pytest.raises(
        UsageError, match=r"has about 3 rows, whose \d+ columns take .* GB of memory, of which"
    ):
        read_results(path)
    assert len(read_results(path, columns=["round"])) == 3


def test_the_free_memory_of_this_machine_is_a_number_to_go_by() -> None:
    assert 0.01 < reader.available_memory_gb() < 100_000
