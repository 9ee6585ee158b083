"""How a record becomes a line of CSV, and a line a record again.

A number is written with nine significant digits: enough for a float32 to come back as it was, and for a
nanosecond in a second. None is an empty cell. A text that a spreadsheet would run as a formula gets an
apostrophe in front, which the reader takes away.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from convbench.registry.errors import UsageError
from convbench.results.schema import Column, Combined, columns

Record = TypeVar("Record", bound=Combined)

FORMULA = re.compile(r"'*[=+\-@]")  # OWASP's list; its tab and carriage return are blanks by then
GUARDED = re.compile(r"'+[=+\-@]")
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")


def header(record: type[Combined]) -> str:
    """The first line of the file that holds such records."""
    return line(column.name for column in columns(record))


def line(cells: Iterable[str]) -> str:
    """A line of CSV, its line feed included; no cell holds another one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def to_line(record: Combined) -> str:
    """Write a record as one line."""
    return line(to_cell(getattr(record, column.name), column) for column in columns(type(record)))


def to_cell(value: Any, column: Column) -> str:
    """Write one value.

    Raises:
        TypeError: a required value is None, or the value does not fit its column.
    """
    if value is None:
        if column.required:
            raise TypeError(f"column {column.name} cannot be empty")
        return ""
    if column.type is str:
        if not isinstance(value, str):
            raise TypeError(f"column {column.name} holds text, not {value!r}")
        return guard(value)
    number = float(value)
    if column.type is int:
        if not number.is_integer():
            raise TypeError(f"column {column.name} holds whole numbers, not {value!r}")
        return str(int(value))
    return format(number, ".9g")


def guard(text: str) -> str:
    """Flatten a text to one line that no spreadsheet runs as a formula."""
    flat = flatten(text)
    return f"'{flat}" if FORMULA.match(flat) else flat


def flatten(text: str) -> str:
    """One line of a text of many, without control characters."""
    return CONTROL.sub(" ", text).strip()


def unguard(cell: str) -> str:
    """Undo `guard`'s apostrophe."""
    return cell[1:] if GUARDED.match(cell) else cell


def from_cell(cell: str, column: Column, where: str) -> str | int | float | None:
    """Read one value back.

    Raises:
        UsageError: the cell is empty where it must not be, or not a number in a column of numbers.
    """
    if cell == "" and (not column.required or column.type is not str):
        if column.required:
            raise UsageError(f"{where}: column {column.name} is empty")
        return None
    if column.type is str:
        return unguard(cell)
    try:
        return int(cell) if column.type is int else float(cell)
    except ValueError:
        wanted = "a whole number" if column.type is int else "a number"
        raise UsageError(f"{where}: column {column.name} is {cell!r}, not {wanted}") from None


def read_records(path: Path, record: type[Record]) -> list[Record]:
    """Read a whole file of records; a last line without its end is left out.

    Columns of later versions may be missing, unknown ones are passed over.

    Raises:
        UsageError: the file cannot be read, lacks documented columns, or a cell does not fit its column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason})") from None
    lines = csv.reader(text[: text.rfind("\n") + 1].split("\n"))
    names = next(lines, [])
    if missing := [each.name for each in columns(record) if each.name not in names and not each.later]:
        raise UsageError(f"{path} lacks the columns {', '.join(missing)}")
    found = [(names.index(column.name), column) for column in columns(record) if column.name in names]
    records = []
    for cells in filter(None, lines):
        where = f"{path}, line {lines.line_num}"
        if len(cells) != len(names):
            raise UsageError(f"{where}: {len(cells)} cells instead of {len(names)}")
        try:
            records.append(record(**{each.name: from_cell(cells[at], each, where) for at, each in found}))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
    return records


def difference(names: Sequence[str], record: type[Combined]) -> str:
    """Say which columns are missing and which are unknown."""
    expected = [column.name for column in columns(record)]
    missing = [name for name in expected if name not in names]
    unknown = [name for name in names if name not in expected]
    parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(
        unknown
    )
    return f" ({'; '.join(parts)})" if parts else " (another order)" * (list(names) != expected)
