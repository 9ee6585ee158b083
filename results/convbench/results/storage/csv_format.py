"""How a record becomes a line of CSV, and a line a record again.

A number is written with nine significant digits: enough for a float32 to come back as it was, and for a
nanosecond in a second. None is an empty cell.

A text is one line: control characters are written as escapes such as `\\n` and `\\x1b`, and a backslash that could
begin one is doubled. An apostrophe is put in front of what a spreadsheet would run as a formula: at the beginning
of a text, and after semicolons, at which some programs split a line. Readers undo both, so that a text comes back
unchanged; only lone surrogates, which are not text, come back as escapes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from convbench.registry.errors import UsageError, listed, shown
from convbench.results.columns import Column
from convbench.results.schema import COMBINATION, Combination, Combined, Sample, columns
from convbench.results.storage.files import opened
from convbench.results.wording import UNSEEN

Record = TypeVar("Record", bound=Combined)

# OWASP's list of what begins a formula, in both widths, whatever quotes and blanks come before it. Its tab and
# carriage return are escapes by then.
FORMULA = re.compile(r"(^|;)(?=['\"\s]*[=+\-@＝＋－＠])")
GUARDED = re.compile(r"(^|;)'(?=['\"\s]*[=+\-@＝＋－＠])")
SPECIAL = re.compile(rf"[{UNSEEN}]|\\(?=[\\nrtxu{UNSEEN}])")
ESCAPED = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4}))")
SURROGATE = re.compile(r"[\ud800-\udfff]")
NOT_FINITE = re.compile(r"nan|NaN|[+-]?(?i:inf(inity)?)")
LARGEST = 2**63 - 1  # of the whole numbers in a table
SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
LONG = {short[1]: character for character, short in SHORT.items()}


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
    """A text as one line that no spreadsheet runs as a formula."""
    text = SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return FORMULA.sub(r"\1'", SPECIAL.sub(escape, text))


def unguard(cell: str) -> str:
    """The text that `guard` made a cell of."""
    if "\\" not in cell and "'" not in cell:
        return cell
    return ESCAPED.sub(unescape, GUARDED.sub(r"\1", cell))


def escape(found: re.Match[str]) -> str:
    """A special character as an escape."""
    code = ord(found[0])
    return SHORT.get(found[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def unescape(found: re.Match[str]) -> str:
    """The character that an escape stands for; a surrogate stays one, for it is no character."""
    short, *codes = found.groups()
    if short:
        return LONG[short]
    character = chr(int(codes[0] or codes[1], 16))
    return found[0] if SURROGATE.match(character) else character


def from_cell(cell: str, column: Column, where: str) -> str | int | float | None:
    """Read one value back.

    Raises:
        UsageError: the cell is empty where it must not be, or not a number in a column of numbers.
    """
    if cell == "":
        if column.required:
            raise UsageError(f"{where}: column {column.name} is empty")
        return column.default  # type: ignore[no-any-return]
    if column.type is str:
        return unguard(cell)
    wanted = "a whole number" if column.type is int else "a number"
    try:
        if "_" in cell or not cell.isascii():  # Python's numbers, and no table's
            raise ValueError
        if column.type is float:
            number = float(cell)
            if not (
                math.isfinite(number) or NOT_FINITE.fullmatch(cell)
            ):  # 1e400, -nan: some readers refuse it
                raise ValueError
            return number
        if abs(whole := int(cell)) <= LARGEST:
            return whole
        wanted += " that 64 bits can hold"
    except ValueError:  # also of more digits than Python reads
        pass
    raise UsageError(f"{where}: column {column.name} is {shown(cell)}, not {wanted}")


def read_records(path: Path, record: type[Record]) -> list[Record]:
    """Read a whole file of records; a last line that a kill cut short is left out with a warning.

    Columns of later versions may be missing, unknown ones are passed over.

    Raises:
        UsageError: the file cannot be read, lacks documented columns, or a cell does not fit its column.
    """
    records = []
    with opened(path, record) as file:
        found = [
            (file.names.index(column.name), column) for column in columns(record) if column.name in file.names
        ]
        for where, cells in file.rows():
            try:
                values: dict[str, Any] = {each.name: from_cell(cells[at], each, where) for at, each in found}
                records.append(record(**values))
            except ValueError as error:
                raise UsageError(f"{where}: {error}") from None
    return records


def difference(names: Sequence[str], record: type[Combined]) -> str:
    """Say which columns are missing and which are unknown, eight of each at most."""
    expected = [column.name for column in columns(record)]
    lacking = {
        "missing": [name for name in expected if name not in names],
        "unknown": [name[:40] for name in names if name not in expected],
    }
    parts = [f"{what}: {listed(those, 8, last=', ')}" for what, those in lacking.items() if those]
    return f" ({'; '.join(parts)})" if parts else " (another order)" * (list(names) != expected)


Process = tuple[Combination, int]  # and its round


def step_times(path: Path) -> Mapping[Process, list[float]]:
    """The step times in samples.csv, in milliseconds, by combination and round; empty without the file.

    Raises:
        UsageError: the file is not a samples.csv, or a cell does not fit its column.
    """
    if not path.exists():
        return {}
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    first: dict[tuple[str, ...], str] = {}  # where its first step is, to be named in errors
    known = next(column for column in columns(Sample) if column.name == "step_ms")
    with opened(path, Sample) as file:
        names = [name for name in (*COMBINATION, "round") if name in file.names]
        keys = [file.names.index(name) for name in names]
        step = file.names.index("step_ms")
        for where, cells in file.rows():
            if cells[step]:
                key = tuple([cells[at] for at in keys])
                if key not in times:
                    first[key] = where
                step_ms = float(from_cell(cells[step], known, where) or 0)
                if not 0 < step_ms < math.inf:
                    raise UsageError(f"{where}: step_ms is {step_ms:g}; a time is a number above zero")
                times[key].append(step_ms)
    found: dict[Process, list[float]] = defaultdict(list)
    for key, values in times.items():  # a number may be written in several ways
        found[process(names, key, first[key])] += values
    return found


def process(names: Sequence[str], cells: tuple[str, ...], where: str) -> Process:
    """Read combination and round back from their cells."""
    known = {column.name: column for column in columns(Sample)}
    values: dict[str, Any] = {
        name: from_cell(cell, known[name], where) for name, cell in zip(names, cells, strict=True)
    }
    number = values.pop("round")
    return Combination(**values), int(number or 0)
