"""Files of a run that are old, damaged, or saved by other programs: read, or refused in a sentence."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import exhaustive
from convbench.registry import ConvbenchError, NothingRan, UsageError
from convbench.results import Row, RunStore, Sample, compare, read_results
from convbench.results.analysis.contents import read_contents
from convbench.results.report.write import write_all, write_comparison
from convbench.results.schema import FILES, columns
from convbench.results.storage import files
from convbench.results.storage.csv_format import header, read_records, step_times, to_line
from convbench.results.storage.pytest_benchmark import read_pytest_benchmark
from convbench.suites.runner import run
from convbench.suites.runner.recorder import LONGEST, cut
from result_rows import row, samples, timed, write
from synthetic_run import synthetic_run

REFERENCE = Path(__file__).parents[3] / "results" / "reference"
TABLES = sorted(
    path
    for path in REFERENCE.glob("*/*.csv")
    if "run_id" in path.read_text(encoding="utf-8")[:20] and path.name not in ("curves.csv", "samples.csv")
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return synthetic_run(tmp_path / "run", {"torch": 10.0, "im2col": 24.0}, processes=2, steps=3)


# What earlier versions wrote


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(REFERENCE)))
def test_a_committed_run_is_read_compared_and_reported_on(path: Path, tmp_path: Path) -> None:
    frame = read_results(path)
    assert len(frame) == len(read_records(path, Row)) > 0
    try:
        assert compare(path, path).times or compare(path, path).accuracies
    except NothingRan:
        assert not frame["step_ms_median"].notna().any()
    if path.name == "results.csv":
        copy = shutil.copytree(path.parent, tmp_path / "run")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table, page = write_all(copy)
        assert table.stat().st_size > 500
        assert page.stat().st_size > 10_000


def test_there_are_committed_runs() -> None:
    assert {path.parent.name for path in TABLES} >= {"lenet-cpu", "ladder-cpu", "invariance-cpu"}


def test_a_file_without_any_later_column_has_them_empty_in_their_types(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.csv", timed([1.0, 2.0]))
    kept = [at for at, column in enumerate(columns(Row)) if not column.later]
    with whole.open(newline="") as file, (tmp_path / "old.csv").open("w", newline="") as old:
        csv.writer(old, lineterminator="\n").writerows(
            [[line[at] for at in kept] for line in csv.reader(file)]
        )
    frame, now = read_results(tmp_path / "old.csv"), read_results(whole)
    assert frame.dtypes.astype(str).to_dict() == now.dtypes.astype(str).to_dict()
    for column in columns(Row):
        if column.later:  # of one process, where a file does not say of how many
            cells = frame[column.name]
            assert (cells == 1).all() if column.name == "world_size" else cells.isna().all()
    assert read_results([tmp_path / "old.csv", whole])["round"].tolist() == [0, 1, 0, 1]


# Texts that look like something else

LOOKS = [
    "91681823e703",
    "nan",
    "inf",
    "NA",
    "None",
    "1e5",
    "007",
    "0x10",
    "True",
    "2026-01-01",
    "1_000",
    "-0",
]
TEXTS = [column.name for column in columns(Row) if column.type is str]
TEXTS = [name for name in TEXTS if name not in ("kind", "status", "started_at")]


@pytest.mark.parametrize("text", LOOKS)
def test_a_text_is_a_text_whatever_it_looks_like(text: str, tmp_path: Path) -> None:
    written = row(step_ms_median=1.0, **dict.fromkeys(TEXTS, text))
    path = write(tmp_path / "run" / "results.csv", [written, replace(written, round=1)])
    frame = read_results(path)
    for name in TEXTS:
        assert frame[name].tolist() == [text, text], name
    assert read_records(path, Row)[0] == written
    (pair,) = compare(path, path).times
    assert pair.combination.backend == text
    steps = samples([1.0], backend=text, device=text)
    (tmp_path / "samples.csv").write_text(header(Sample) + "".join(map(to_line, steps)))
    ((combination, _),) = step_times(tmp_path / "samples.csv")
    assert (combination.backend, combination.device) == (text, text)
    benchmark = benchmark_json(
        tmp_path / "a.json", {"architecture": "lenet", "machine_id": text, "backend": text}
    )
    assert read_pytest_benchmark([benchmark])["machine_id"].tolist() == [text]


def test_machines_with_ids_that_look_like_numbers_are_told_apart(tmp_path: Path) -> None:
    sides = [
        write(tmp_path / f"{each}.csv", timed([1.0, 1.0], machine_id=each)) for each in ("1e400", "9e999")
    ]
    with pytest.raises(NothingRan, match=r"unlike machine_id \(1e400 and 9e999\)"):
        compare(*sides)


# Cells of any length, numbers of any size


def test_a_cell_of_any_length_is_read(tmp_path: Path) -> None:
    long = "x" * 400_000
    limit = csv.field_size_limit()
    with RunStore.create(tmp_path / "run") as store:
        store.append(row(step_ms_median=1.0))
        store.append(row(kind="train", status="error", error=long))
    with RunStore.open(tmp_path / "run") as store:
        assert store.rows()[1].error == long
    assert read_results(tmp_path / "run")["error"].tolist()[1] == long
    assert compare(tmp_path / "run", tmp_path / "run").times
    write_all(tmp_path / "run")
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 200_000])
def test_a_long_text_is_cut_where_its_row_is_made(length: int) -> None:
    kept = cut("<" + "x" * (length - 2) + ">")
    assert kept is not None
    assert (kept[0], kept[-1]) == ("<", ">")
    assert (len(kept) == length) == (length <= LONGEST)
    assert len(kept) < LONGEST + 100
    assert cut(None) is None


NUMBERS = ["1e400", "9" * 400, "9" * 5000, "1_000", "\u0663", "0x10", "9223372036854775808"]


@pytest.mark.parametrize("cell", NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_of_any_size_is_read_or_refused_in_a_sentence(cell: str, run_dir: Path) -> None:
    with (run_dir / "results.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    for column in ("batch_size", "threads", "step_ms_median", "val_accuracy"):
        at = names.index(column)
        changed = [[cell if number == at else each for number, each in enumerate(line)] for line in rows]
        path = run_dir.parent / f"{column}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([names, *changed])
        for read in (read_results, lambda path: read_records(path, Row), lambda path: compare(path, path)):
            said = refusal(partial(read, path))
            if said is None:  # a float may be infinite
                assert column in ("step_ms_median", "val_accuracy")
            else:
                assert re.search(rf", line \d: (column )?{column} is ", said)
                assert len(said) < 600


NOT_QUITE = ["tRuE", "FALSE", '"True"', "NAN", "nan ", " NaN", "inf ", "1e", "0x10", "1,5"]


@pytest.mark.parametrize("lines", [3, 20_000], ids=["small", "large"])
@pytest.mark.parametrize("share", ["one", "all"])
@pytest.mark.parametrize("cell", ["True", "-nan", *map(exhaustive, NOT_QUITE)])
def test_what_pandas_takes_for_a_number_and_is_none_is_refused(
    cell: str, share: str, lines: int, tmp_path: Path
) -> None:
    """A large file is read in pieces, each of which may hold nothing but `True` in a column."""
    whole, damaged = (to_line(row(step_ms_median=each)) for each in (1.25, 7654.5))
    damaged = damaged.replace("7654.5", f'"{cell}"' if "," in cell else cell)
    path = tmp_path / "results.csv"
    path.write_text(header(Row) + (whole if share == "one" else damaged) * (lines - 1) + damaged)
    at = lines + 1 if share == "one" else 2
    for read in (read_results, lambda path: read_records(path, Row)):
        with pytest.raises(UsageError, match=rf", line {at}: column step_ms_median is .*, not a number"):
            read(path)


def refusal(read: Callable[[], Any]) -> str | None:
    """What is said of a file that is refused; None of one that is read."""
    try:
        read()
    except ConvbenchError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "time", ["9999-12-31", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59-14:00", "1e9"]
)
def test_a_time_that_no_table_holds_is_refused(time: str, tmp_path: Path) -> None:
    path = write(tmp_path / "results.csv", [row(step_ms_median=1.0, started_at=time)])
    with pytest.raises(
        UsageError, match=r"column started_at is '.*', not a time in ISO 8601 in the years 1678"
    ):
        read_results(path)


# Damage

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "half a line": lambda data: half_a_line(data),
    "a NUL byte": lambda data: data[:-20] + b"\0" + data[-20:],
    "an open quote": lambda data: data.replace(b",lenet,", b',"lenet,', 1),
    "a quoted line break in a number": lambda data: data.replace(b",128,", b',"12\n8",', 1),
    "another encoding": lambda data: data.replace(b",torch,", b",t\xe9rch,", 1),
    "two rows in one": lambda data: b"\n".join(data.split(b"\n")[:2]) + data.split(b"\n")[2] + b"\n",
    "UTF-16": lambda data: data.decode().encode("utf-16"),
}


def half_a_line(data: bytes) -> bytes:
    """Cut one in the middle short by its last cell."""
    middle = data.index(b"\n", len(data) // 2)
    return data[: data.rindex(b",", 0, middle)] + data[middle:]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_named_with_its_line(name: str, damage: str, run_dir: Path) -> None:
    path = run_dir / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    reads: list[Callable[[], Any]] = [lambda: RunStore.open(run_dir).close(), lambda: write_all(run_dir)]
    if name == "results.csv":
        reads += [lambda: read_results(run_dir), lambda: compare(run_dir, run_dir)]
    for read in reads:
        with pytest.raises(UsageError) as caught:
            read()
        assert name in str(caught.value)
        assert ", line " in str(caught.value) or damage == "UTF-16"
        assert "\n" not in str(caught.value)


def test_a_quoted_line_break_in_a_text_is_a_text(run_dir: Path) -> None:
    path = run_dir / "samples.csv"
    path.write_bytes(path.read_bytes().replace(b"run,lenet,", b'"run\n2",lenet,', 1))
    RunStore.open(run_dir).close()
    assert len(read_records(path, Sample)) == 2 * 2 * 3 - 1  # that run has no row


@pytest.mark.parametrize("name", FILES)
def test_a_table_that_a_spreadsheet_saved_is_resumed(name: str, run_dir: Path) -> None:
    before = read_records(run_dir / name, FILES[name])
    path = run_dir / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    with RunStore.open(run_dir) as store:
        store.append(row(kind="train", seed=9))
    assert read_records(path, FILES[name])[: len(before)] == before


def test_lines_may_end_in_several_carriage_returns_and_columns_have_any_name(run_dir: Path) -> None:
    path = run_dir / "results.csv"
    before = read_results(path)
    first, *rows = path.read_bytes().splitlines()
    lines = [first + b',",."', *(line + b",x" for line in rows)]
    path.write_bytes(b"".join(line + b"\r\r\n" for line in lines))
    frame = read_results(path)
    assert frame.pop(",.").tolist() == ["x"] * len(rows)
    assert frame.equals(before)
    assert len(read_records(path, Row)) == len(frame)


ENVIRONMENTS: dict[str, tuple[bytes, str]] = {
    "half": (b'{\n "memory_gb": 31.4,\n "to', r"environment\.json, line 3: not JSON"),
    "NUL": (b'{"a": "\0"}', r"environment\.json is not text"),
    "deep": (b"[" * 200_000, "its brackets are nested too deeply"),
    "digits": (b'{"memory_gb": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    "UTF-16": ('{"memory_gb": 31.4}'.encode("utf-16"), "is UTF-16 text: save it in UTF-8"),
    "Latin-1": ('{\n"cpu_model": "größer"}'.encode("latin-1"), "line 2: byte 0xf6 is not UTF-8 text"),
    "a list": (b"[1]", "is no JSON object"),
    "other types": (b'{"memory_gb": "many", "planned_processes": 3}', "memory_gb is 'many'"),
    "empty": (b"", "line 1: not JSON"),
}


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_a_report_does_without_a_damaged_environment_and_says_so(what: str, run_dir: Path) -> None:
    content, sentence = ENVIRONMENTS[what]
    (run_dir / "environment.json").write_bytes(content)
    with pytest.warns(UserWarning, match=f"{sentence}.*the report does without it"):
        write_all(run_dir)
    (run_dir / "environment.json").write_bytes(b'\xef\xbb\xbf{"memory_gb": 31.4}')
    assert read_contents(run_dir).environment == {"memory_gb": 31.4}


def test_a_report_does_without_a_damaged_suite_and_says_so(run_dir: Path) -> None:
    (run_dir / "suite.toml").write_bytes('name = "größe"'.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"suite\.toml, line 1: .*the report does without it"):
        write_all(run_dir)


# JSON of pytest-benchmark


def benchmark_json(path: Path, extra: Any = None, median: Any = 0.01) -> Path:
    benchmark = {"fullname": "t.py::t", "stats": {"median": median}, "extra_info": extra or {}}
    path.write_text(json.dumps({"benchmarks": [benchmark]}), encoding="utf-8")
    return path


@pytest.mark.parametrize("median", [10**400, 1e308, -1, 0, float("nan"), float("inf"), True, "1", None])
def test_a_benchmark_needs_a_time(median: Any, tmp_path: Path) -> None:
    for path in (
        benchmark_json(tmp_path / "a.json", median=median),
        benchmark_json(tmp_path / "b.json", {"step_ms_of_processes": [median]}),
    ):
        with pytest.raises(
            UsageError, match=r"json, benchmark 0.* (has no median time|not a list of times) above"
        ):
            compare(path, path)


@pytest.mark.parametrize("number", [10**400, True, *map(exhaustive, (2**63, 1e308, float("nan"), -1))])
def test_what_a_benchmark_names_is_read_or_refused(number: float, tmp_path: Path) -> None:
    for column in columns(Row):
        extra = {"architecture": "lenet", column.name: number}
        path = benchmark_json(tmp_path / "a.json", extra)
        assert column.name in (refusal(partial(compare, path, path)) or column.name)


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b'{"benchmarks": []}', NothingRan, "there are no rows"),
        (b'\xef\xbb\xbf{"benchmarks": []}', NothingRan, "there are no rows"),
        ('{"benchmarks": []}'.encode("utf-16"), UsageError, "is UTF-16 text: save it in UTF-8"),
        (b'{"benchmarks": ' + b"[" * 200_000, UsageError, "its brackets are nested too deeply"),
        (b'{"benchmarks":\n[}', UsageError, "line 2: not JSON"),
        (b'{"benchmarks": "\xe9"}', UsageError, "line 1: byte 0xe9 is not UTF-8 text"),
    ],
    ids=range(6),
)
def test_other_json_is_one_sentence(
    content: bytes, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(kind, match=sentence):
        compare(path, path)


# Pages on a full disk, and in strange places


def test_a_page_is_written_whole_or_not_at_all(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills at each write in turn, in the middle of it."""
    pages = write_all(run_dir)
    before = {path: path.read_bytes() for path in pages}
    names = sorted(path.name for path in run_dir.iterdir())
    write_bytes = Path.write_bytes
    for full in range(2):
        written: list[Path] = []

        def fill(path: Path, data: bytes, full: int = full, written: list[Path] = written) -> int:
            written.append(path)
            if len(written) <= full:
                return write_bytes(path, data)
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", fill)
        with pytest.raises(UsageError, match=rf"cannot write .*{pages[full].name}: No space left on device"):
            write_all(run_dir)
        monkeypatch.undo()
        assert {path: path.read_bytes() for path in pages} == before
        assert sorted(path.name for path in run_dir.iterdir()) == names


def test_a_run_whose_pages_cannot_be_written_is_no_success(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        RunStore.open(run_dir) as store,
        pytest.raises(
            ConvbenchError, match=r"No space left on device; every row is kept, and `convbench report "
        ),
    ):
        run._write_pages(store)


def test_links_devices_and_modes_are_left_as_they_are(tmp_path: Path) -> None:
    real, link, device = tmp_path / "real", tmp_path / "link", tmp_path / "null"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    device.symlink_to(os.devnull)
    files.write_text(link, "new")
    files.write_text(device, "new")
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o640)
    assert link.is_symlink()
    assert device.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "null", "real"]


def test_a_directory_whose_name_is_no_text_is_as_good(tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    run_dir = synthetic_run(strange, {"torch": 10.0}, processes=2, steps=3)
    assert [page.stat().st_size > 500 for page in write_all(run_dir)] == [True, True]
    write_comparison(compare(run_dir, run_dir), strange / "page.html")
    RunStore.open(run_dir).close()


@pytest.mark.parametrize(
    ("name", "read"),
    [("other.csv", read_results), ("samples.csv", step_times), ("environment.json", files.read_json)],
)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(
    name: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=f"cannot read .*{name}: it is a pipe or a device; save what"):
        read(tmp_path / name)


def test_the_columns_of_another_version_are_listed_briefly(run_dir: Path) -> None:
    path = run_dir / "results.csv"
    names, _, rest = path.read_text().partition("\n")
    path.write_text(f"{names.upper()}\n{rest}")
    with pytest.raises(UsageError, match=r"missing: run_id, .* more; unknown: RUN_ID, .* more") as refused:
        RunStore.open(run_dir)
    assert len(str(refused.value)) < 700
