"""Reads results.csv files, also edited or damaged ones, into one pandas table."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convbench.registry.errors import UsageError, shown
from convbench.results.columns import Column
from convbench.results.schema import KINDS, STATUSES, Row, columns
from convbench.results.storage.csv_format import from_cell, unguard
from convbench.results.storage.environment import available_memory_gb
from convbench.results.storage.files import NUL, Opened, not_utf_8, opened

if TYPE_CHECKING:
    import pandas as pd

WHOLE, NUMBER, REPEATED, TEXT, TIME = "Int64", "float64", "category", "string", "datetime64[ns, UTC]"
DOCUMENTED = {column.name: column for column in columns(Row)}
ALLOWED: dict[str, Sequence[str]] = {"kind": KINDS, "status": STATUSES}
SENTENCES = ("error", "notes")  # texts that hardly repeat
TIMES = ("started_at",)
YEARS = 1678, 2261  # whole ones that nanoseconds in 64 bits can count
BYTES_PER_CELL = 12  # numbers take 8 or 9, texts a code of 1 to 4; and some are there twice for a while
SMALL = 1 << 28  # bytes of a file that fits into any memory
TRUTH = re.compile(rb"[,\"\n](TRUE|FALSE)[,\"\r\n]")
END = ",."  # put behind each line, as a last cell: in a line that is too short, pandas takes it for another
LAST = "\n"  # the name of its column, which no other column can have


def read_results(
    path: Path | str | Iterable[Path | str], *, columns: Collection[str] | None = None
) -> pd.DataFrame:
    """Read one or more results.csv files (or run directories) into one table.

    Texts that repeat are `category`, others `string`, whole numbers `Int64`, other numbers `float64` and times
    `datetime64[ns, UTC]`, as results/README.md lists them; an empty cell is missing. Columns that convbench does
    not know are kept as `string`, and those of later versions that a file lacks are empty. A last line without
    its line feed, which a kill cut short, is left out with a warning.

    Args:
        path: one file or run directory, or several.
        columns: only these, which saves memory and time.

    Raises:
        UsageError: a file is missing, empty, not UTF-8 text, lacks documented columns, has a cell that does not
            fit its column, or does not fit into memory.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths:
        raise UsageError("no results file was given")
    return joined([read_table(results_file(Path(each)), columns) for each in paths])


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


def read_table(path: Path, wanted: Collection[str] | None = None) -> pd.DataFrame:
    """Read one file; only the columns `wanted`, if given."""
    import pandas as pd

    with opened(path, Row) as file:
        names = file.names
        chosen = [name for name in names if wanted is None or name in wanted]
        if unknown := sorted(set(wanted or ()) - set(names) - set(DOCUMENTED)):
            raise UsageError(f"{path} has no column {', '.join(map(repr, unknown))}")
        check_memory(file, chosen)
        numbers = [name for name in chosen if dtype(name, DOCUMENTED.get(name)) == NUMBER]
        lines = Lines(file)
        try:
            frame = pd.read_csv(
                lines,  # type: ignore[call-overload]  # any object that reads bytes will do
                header=None,
                names=[*names, LAST],
                index_col=False,
                usecols=[*chosen, LAST],
                dtype={**{name: parsed(name, DOCUMENTED.get(name)) for name in chosen}, LAST: "object"},
                keep_default_na=False,
                # pandas refuses a column of numbers in which every number is nan
                na_values={name: ["", "nan", "NaN"] if name in numbers else [""] for name in [*chosen, LAST]},
                encoding="utf-8",
            )
        except UnicodeDecodeError as error:
            explain(path)
            raise UsageError(f"{path}: {not_utf_8(error)}") from None
        except (ValueError, TypeError, OverflowError, pd.errors.ParserError) as error:
            explain(path)
            raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    # pandas fills a line that is too short with empty cells, and drops the last ones of one that is too long
    suspicious = bool((frame.pop(LAST) != END[1:]).any()) or lines.doubtful
    for name in chosen:
        column = DOCUMENTED.get(name)
        suspicious |= column is not None and column.required and bool(frame[name].isna().any())
    for name in numbers:  # what pandas takes for a number, and `from_cell` does not
        suspicious |= bool(frame[name].isin([math.inf, -math.inf]).any())  # 1e400
    if suspicious:
        explain(path)
    for column in DOCUMENTED.values():
        if column.later and column.name not in frame and (wanted is None or column.name in wanted):
            # None is missing in every type; pandas 3 makes no float of NA
            frame[column.name] = pd.Series(None, index=frame.index, dtype=parsed(column.name, column))
    return with_defaults(finished(frame, path))


def with_defaults(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the default of a column in its empty cells, where it has one: a world size is 1."""
    defaults = {
        name: column.default
        for name in frame.columns
        if (column := DOCUMENTED.get(name)) is not None and column.default is not None
    }
    return frame.fillna(defaults) if defaults else frame


def dtype(name: str, column: Column | None) -> str:
    """The pandas type of a column; None is one that convbench does not know."""
    if column is None or name in SENTENCES:
        return TEXT
    if name in TIMES:
        return TIME
    return REPEATED if column.type is str else WHOLE if column.type is int else NUMBER


def parsed(name: str, column: Column | None) -> str:
    """The type that a column is first read as: pandas 3 reads categories as numbers, and 1e-400 as a whole one."""
    return NUMBER if dtype(name, column) == NUMBER else "object"


def finished(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Give texts and times the values and types that they had before they were written."""
    import numpy as np
    import pandas as pd

    for name in frame.columns:
        if frame[name].dtype != "object":
            continue
        codes, found = pd.factorize(frame[name])  # -1 where a value is missing
        if (column := DOCUMENTED.get(name)) is not None and column.type is int:
            frame[name] = whole_numbers(list(found), column, path).take(codes, allow_fill=True)
            continue
        texts = [unguard(text.replace(f"{END}\n", "\n")) for text in found]
        wanted = dtype(name, DOCUMENTED.get(name))
        if wanted == REPEATED:
            order = list(ALLOWED.get(name) or sorted(set(texts)))
            if not set(texts) <= set(order):
                explain(path)
            places = {text: place for place, text in enumerate(order)}
            moved = np.asarray([*(places[text] for text in texts), -1], dtype=np.int32)
            frame[name] = pd.Categorical.from_codes(moved[codes], dtype=pd.CategoricalDtype(order))
        else:
            made = times(texts, path) if wanted == TIME else pd.array(texts, dtype=pd.StringDtype())
            frame[name] = made.take(codes, allow_fill=True)
    return frame


def whole_numbers(cells: Sequence[str], column: Column, path: Path) -> Any:
    """Cells of a column of whole numbers as numbers."""
    import numpy as np
    import pandas as pd

    try:
        numbers = [from_cell(cell, column, str(path)) for cell in cells]
    except UsageError:
        explain(path)
        raise
    return pd.array(np.array(numbers, dtype=np.int64), dtype="Int64")


def times(texts: Sequence[str], path: Path) -> Any:
    """Points in time.

    Raises:
        UsageError: one is none.
    """
    import pandas as pd

    found = pd.to_datetime(pd.Series(texts, dtype="object"), utc=True, format="ISO8601", errors="coerce")
    found = found.where(found.dt.year.between(*YEARS)).dt.as_unit("ns")
    for text, time in zip(texts, found, strict=True):
        if pd.isna(time):
            allowed = f"a time in ISO 8601 in the years {YEARS[0]} to {YEARS[1]}"
            raise UsageError(f"{path}: column started_at is {shown(text)}, not {allowed}")
    return found.array


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several tables as one; categories are those of all of them."""
    import pandas as pd

    if len(frames) == 1:
        return frames[0]
    for name in dict.fromkeys(name for frame in frames for name in frame.columns):
        if all(name in frame and frame[name].dtype == REPEATED for frame in frames):
            every = [list(frame[name].array.categories) for frame in frames]
            order = ALLOWED.get(name) or sorted({text for texts in every for text in texts})
            for frame in frames:
                frame[name] = frame[name].cat.set_categories(order)
    return pd.concat(frames, ignore_index=True)


class Lines:
    """The whole lines of a file as pandas reads them, in bytes: each with a last cell that marks its end.

    Attributes:
        doubtful: whether there is what pandas reads and `from_cell` does not: a cell `True` or `False`, in any
            case, or a carriage return within a line.
    """

    def __init__(self, opened: Opened) -> None:
        self.file: BinaryIO = opened.file
        self.left = opened.size - opened.file.tell()
        self.doubtful = False
        self._carried = self._before = b""

    def __iter__(self) -> Iterator[bytes]:  # pandas asks for it, and does not use it
        raise NotImplementedError

    def read(self, size: int = -1) -> bytes:
        """About as many bytes as asked for; none at the end."""
        data = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        if b"\0" in data:
            raise ValueError(NUL)
        upper = (self._before + data).upper()
        if b"TRUE" in upper or b"FALSE" in upper:  # a search that is fast
            self.doubtful |= TRUTH.search(upper) is not None
        self._before = data[-len(b",FALSE") :]
        data = self._carried + data
        self._carried = b""
        if b"\r" in data:
            if self.left:  # a line feed may come next
                kept = data.rstrip(b"\r")
                data, self._carried = kept, data[len(kept) :]
                if not data:
                    return self.read(size)
            data = re.sub(rb"\r+\n", b"\n", data)
            self.doubtful |= b"\r" in data
        return data.replace(b"\n", f"{END}\n".encode())


def check_memory(file: Opened, chosen: Collection[str]) -> None:
    """Refuse a file whose table would not fit into memory.

    Raises:
        UsageError: it would not; it says how much it takes.
    """
    size = file.size - file.file.tell()
    if size < SMALL:
        return
    start = file.file.tell()
    sampled = file.file.read(1 << 20)
    file.file.seek(start)
    lines = max(sampled.count(b"\n"), 1) * size / len(sampled)
    needed = lines * BYTES_PER_CELL * len(chosen) / 1e9
    free = available_memory_gb()
    if needed > free:
        raise UsageError(
            f"{file.path} has about {lines:,.0f} rows, whose {len(chosen)} columns take {needed:.1f} GB of "
            f"memory, of which {free:.1f} GB are free; read fewer columns, as in read_results(path, columns=[...])"
        )


def row_place(path: Path, at: int) -> str:
    """Where the row at this position of a file's table is, to be named in errors."""
    with opened(path, Row) as file:
        return next(islice((where for where, _ in file.rows()), at, None), str(path))


def explain(path: Path) -> None:
    """Find the line and the column of what pandas stumbled over.

    Raises:
        UsageError: the first cell that does not fit.
    """
    with opened(path, Row) as file:
        for where, cells in file.rows():
            for name, cell in zip(file.names, cells, strict=True):
                if name in DOCUMENTED:
                    check_cell(cell, DOCUMENTED[name], where)


def check_cell(cell: str, column: Column, where: str) -> None:
    """Refuse a cell that does not fit its column."""
    if column.required and not cell:
        raise UsageError(f"{where}: column {column.name} is empty")
    value = from_cell(cell, column, where)
    allowed = ALLOWED.get(column.name)
    if allowed and value not in allowed:
        raise UsageError(f"{where}: {column.name} is {shown(cell)}, not one of {', '.join(allowed)}")
