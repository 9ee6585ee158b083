"""Reads results.csv files, also those that somebody edited, cut or mistook, into one pandas table."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from convbench.registry.errors import UsageError
from convbench.results.cells import GUARDED, from_cell, unguard
from convbench.results.schema import KINDS, STATUSES, Column, Row, columns

if TYPE_CHECKING:
    import pandas as pd

TEXT, WHOLE, NUMBER = "string", "Int64", "float64"
ALLOWED: dict[str, Sequence[str]] = {"kind": KINDS, "status": STATUSES}


def read_results(path: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Read one or more results.csv files (or run directories) into one table.

    Texts are `string`, whole numbers `Int64`, other numbers `float64`; an empty cell is missing. Columns that
    convbench does not know are kept as text, and those of later versions that a file lacks are empty. A last
    line without its line feed, which a kill cut short, is left out with a warning.

    Raises:
        UsageError: a file is missing, empty, not UTF-8 text, lacks documented columns, or has a cell that
            does not fit its column.
    """
    import pandas as pd

    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths:
        raise UsageError("no results file was given")
    frames = [read_table(results_file(Path(each))) for each in paths]
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def results_file(path: Path) -> Path:
    """The results.csv that `path` is, or that the run directory `path` holds.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir():
        if (path / "results.csv").is_file():
            return path / "results.csv"
        raise UsageError(f"{path} is a directory without a results.csv")
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    return path


def read_table(path: Path, wanted: Collection[str] | None = None, *, compact: bool = False) -> pd.DataFrame:
    """Read one file; only the columns `wanted`, if given, and texts as categories if `compact`."""
    import pandas as pd

    try:
        with path.open("rb") as file:
            size = whole_size(file, path)
            names = read_header(file, path)
            documented = {column.name: column for column in columns(Row)}
            check_columns(names, documented.values(), path)
            chosen = [name for name in names if wanted is None or name in wanted or name == names[-1]]
            types = {name: dtype(documented.get(name), compact) for name in chosen}
            try:
                frame = pd.read_csv(
                    Whole(file, size),
                    header=None,
                    names=names,
                    usecols=chosen,
                    dtype=types,
                    keep_default_na=False,
                    na_values=[""],
                    encoding="utf-8",
                )
            except UnicodeDecodeError as error:
                raise UsageError(f"{path} is not UTF-8 text ({error.reason})") from None
            except (ValueError, TypeError, pd.errors.ParserError) as error:
                explain(path, names)
                raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if frame[names[-1]].isna().any():  # pandas fills a line that is too short with empty cells
        check_lengths(path, len(names))
    for column in documented.values():
        if column.name in frame and column.required and frame[column.name].isna().any():
            explain(path, names)
    for name, allowed in ALLOWED.items():
        if name in frame and not set(frame[name].unique()) <= set(allowed):
            explain(path, names)
    for column in documented.values():
        if column.later and column.name not in frame and (wanted is None or column.name in wanted):
            frame[column.name] = pd.Series(pd.NA, index=frame.index, dtype=dtype(column, compact))
    return restore_texts(frame)


def dtype(column: Column | None, compact: bool) -> str:
    """The pandas type of a column; None is one that convbench does not know."""
    if column is None or column.type is str:
        return "category" if compact else TEXT
    return WHOLE if column.type is int else NUMBER


def restore_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Take away the apostrophes that `cells.guard` put in front of formulas."""
    for name in frame.columns:
        values = frame[name]
        if values.dtype == "category":
            frame[name] = values.cat.rename_categories(unguard)
        elif values.dtype == TEXT:
            guarded = values.str.match(GUARDED.pattern).fillna(False)
            frame.loc[guarded, name] = values[guarded].str[1:]
    return frame


class Whole(io.RawIOBase):
    """A file up to the end of its last whole line."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size - file.tell()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def whole_size(file: BinaryIO, path: Path) -> int:
    """Where the last whole line of a file ends; warns if something follows."""
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise UsageError(f"{path} is empty")
    end, block = size, b""
    while end > 0 and b"\n" not in block:
        start = max(0, end - 65536)
        file.seek(start)
        block = file.read(end - start)
        whole = start + block.rfind(b"\n") + 1
        end = start
    file.seek(0)
    if b"\n" not in block:
        return size  # one line alone: its columns decide what it is
    if whole < size:
        warnings.warn(f"{path}: the last line is cut short and left out", stacklevel=4)
    return whole


def read_header(file: BinaryIO, path: Path) -> list[str]:
    """The names of the columns, with or without a byte order mark."""
    try:
        text = file.readline().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    return next(csv.reader([text]), [])


def check_columns(names: Sequence[str], documented: Iterable[Column], path: Path) -> None:
    """Refuse a file that is not a results.csv.

    Raises:
        UsageError: a documented column is missing, or one is there twice.
    """
    expected = [column.name for column in documented if not column.later]
    missing = [name for name in expected if name not in names]
    if len(missing) > len(expected) // 2:
        raise UsageError(
            f"{path} is not a results.csv: its columns are {', '.join(names[:8])[:200] or 'none'}"
        )
    if missing:
        raise UsageError(f"{path} lacks the columns {', '.join(missing)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path} has the columns {', '.join(twice)} twice")


def check_lengths(path: Path, width: int) -> None:
    """Refuse a line with another number of cells than the header.

    Raises:
        UsageError: the first such line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            # Quotes are rare, and counting commas is ten times as fast as parsing; a last line that a kill
            # cut short has been reported already.
            if line.count(b",") + 1 != width and b'"' not in line and line.strip() and line.endswith(b"\n"):
                raise UsageError(f"{path}, line {number}: {line.count(b',') + 1} cells instead of {width}")


def explain(path: Path, names: Sequence[str]) -> None:
    """Find the line and the column of what pandas stumbled over.

    Raises:
        UsageError: the first cell that does not fit.
    """
    documented = {column.name: column for column in columns(Row)}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            next(lines)
            for cells in lines:
                where = f"{path}, line {lines.line_num}"
                if cells and len(cells) != len(names):
                    raise UsageError(f"{where}: {len(cells)} cells instead of {len(names)}")
                for name, cell in zip(names, cells, strict=False):
                    if name in documented:
                        check_cell(cell, documented[name], where)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def check_cell(cell: str, column: Column, where: str) -> None:
    """Refuse a cell that does not fit its column."""
    if column.required and not cell:
        raise UsageError(f"{where}: column {column.name} is empty")
    value = from_cell(cell, column, where)
    allowed = ALLOWED.get(column.name)
    if allowed and value not in allowed:
        raise UsageError(f"{where}: {column.name} is {cell!r}, not one of {', '.join(allowed)}")
