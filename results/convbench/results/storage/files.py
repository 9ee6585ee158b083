"""Opens the files of a run, also edited or damaged ones, with a clear error; writes files whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from convbench.registry.errors import UsageError
from convbench.results.columns import Column
from convbench.results.schema import FILES, Combined, columns

UTF_16, UTF_32 = (f"is UTF-{bits} text: save it in UTF-8" for bits in (16, 32))
FORMATS = (
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"BZh", "is compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first"),
    (b"PK\x03\x04", "is a zip archive or a workbook: unpack it, or save its sheet as CSV in UTF-8"),
    (b"\xff\xfe\0\0", UTF_32),
    (b"\0\0\xfe\xff", UTF_32),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
)
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}
LONGEST = 1 << 20  # of a header: what has a longer first line is no table


@dataclass(frozen=True)
class Opened:
    """A file that was read up to the end of its header; `size` is where its last whole line ends."""

    path: Path
    file: BinaryIO
    names: tuple[str, ...]
    size: int

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Each further line as cells, as many as there are columns, and where it is, to be named in errors.

        Raises:
            UsageError: it is not UTF-8 text, has another number of cells, or repeats the header.
        """
        lines = csv.reader(self._lines())
        try:
            for cells in lines:
                if not cells:
                    continue
                where = f"{self.path}, line {lines.line_num + 1}"
                check_line(cells, self.names, where)
                yield where, cells
        except csv.Error as error:
            raise UsageError(f"{self.path}, line {lines.line_num + 1}: {error}") from None

    def _lines(self) -> Iterator[str]:
        left = self.size - self.file.tell()
        for number, line in enumerate(self.file, 2):
            left -= len(line)
            if left < 0:
                return
            if b"\0" in line:
                raise UsageError(f"{self.path}, line {number}: {NUL}")
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(f"{self.path}, line {number}: {not_utf_8(error)}") from None


NUL = "a NUL byte, which no text has; the file is damaged"


def not_utf_8(error: UnicodeDecodeError) -> str:
    """What is wrong with a text in another encoding."""
    byte = error.object[error.start]
    return (
        f"byte 0x{byte:02x} is not UTF-8 text; a file in Latin-1 or another encoding has to be saved as UTF-8"
    )


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may never end, is refused.

    Raises:
        OSError: it cannot be opened.
        UsageError: it is neither a file nor a directory.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"cannot read {path}: it is a pipe or a device; save what it yields as a file")
    return path.open("rb")


@contextmanager
def opened(path: Path, record: type[Combined]) -> Iterator[Opened]:
    """Open a file of such records, which has to have their columns; later ones may be missing.

    A last line without its line feed, which a kill cut short, is left out with a warning.

    Raises:
        UsageError: it cannot be read, or is no CSV file of these columns in UTF-8.
    """
    longest = csv.field_size_limit(sys.maxsize)  # an error message may be of any length
    try:
        with open_file(path) as file:
            check_format(file, path)
            size = whole_size(file, path)
            names = read_header(file, path, record)
            check_columns(names, record, path)
            yield Opened(path, file, tuple(names), max(size, file.tell()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    finally:
        csv.field_size_limit(longest)


def read_text(path: Path, kind: str = "") -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UsageError: it cannot be read, or is no text in UTF-8.
    """
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        named = f"{kind} {path}" if kind else path
        raise UsageError(f"cannot read {named}: {error.strerror}") from None
    if content:
        check_format(io.BytesIO(content), path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: {not_utf_8(error)}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UsageError: it cannot be read, or is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise UsageError(f"{path} is not JSON that can be read: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is not JSON that can be read: its brackets are nested too deeply") from None


def check_format(file: BinaryIO, path: Path) -> None:
    """Refuse what is no text, or nothing."""
    first = file.read(64)
    file.seek(0)
    if not first:
        raise UsageError(f"{path} is empty")
    for magic, what in FORMATS:
        if first.startswith(magic):
            raise UsageError(f"{path} {what}")
    if b"\0" in first:
        halves = sorted(half.count(0) for half in (first[::2], first[1::2]))
        wide = halves[0] == 0 and halves[1] > len(first) // 4  # Latin letters in two bytes each
        raise UsageError(f"{path} {UTF_16 if wide else 'is not text'}")


def whole_size(file: BinaryIO, path: Path) -> int:
    """Where the last whole line of a file ends; warns if something follows."""
    size = file.seek(0, io.SEEK_END)
    end, block = size, b""
    whole = 0
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
        warnings.warn(f"{path}: the last line is cut short and left out", stacklevel=5)
    return whole


def read_header(file: BinaryIO, path: Path, record: type[Combined]) -> list[str]:
    """The names of the columns, with or without a byte order mark."""
    try:
        text = file.readline(LONGEST).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}, line 1: {not_utf_8(error)}") from None
    if "\0" in text:
        raise UsageError(f"{path}, line 1: {NUL}")
    if "\r" in text:
        raise UsageError(f"{path}: its lines end in carriage returns alone; save it with line feeds")
    known = {column.name for column in columns(record)}
    for delimiter, name in DELIMITERS.items():
        if len(known & {cell.strip('"') for cell in text.split(delimiter)}) > 1:
            raise UsageError(f"{path} has its columns separated by {name}; save it with commas")
    try:
        return next(csv.reader([text]), [])
    except csv.Error as error:
        raise UsageError(f"{path}, line 1: {error}") from None


def check_columns(names: Sequence[str], record: type[Combined], path: Path) -> None:
    """Refuse a file without the columns of its records.

    Raises:
        UsageError: a documented column is missing, or one is there twice.
    """
    documented = columns(record)
    missing = [column for column in documented if not column.later and column.name not in names]
    if len(missing) > sum(not column.later for column in documented) // 2:
        expected = next(name for name, each in FILES.items() if each is record)
        there = ", ".join(names[:8])[:200] or "none"
        raise UsageError(f"{path} is not a {expected}: its columns are {there}")
    if missing:
        unknown = sorted(set(names) - {column.name for column in documented})
        listed = ", ".join(lacking(column, unknown) for column in missing)
        raise UsageError(f"{path} lacks the column{'s' * (len(missing) > 1)} {listed}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path} has the column{'s' * (len(twice) > 1)} {', '.join(map(repr, twice))} twice")


def lacking(column: Column, unknown: Collection[str]) -> str:
    """A missing column, and which of those that are there it may be."""
    near = get_close_matches(column.name, unknown, n=1, cutoff=0.6)
    unit = f" in {column.unit}" if column.unit else ""
    return f"{column.name}{f' ({near[0]!r} is there; is it the same{unit}?)' if near else ''}"


def check_line(cells: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuse a line of another number of cells, or one that is a second header.

    Raises:
        UsageError: it is one.
    """
    if len(cells) != len(names):
        raise UsageError(f"{where}: {len(cells)} cells instead of {len(names)}")
    if tuple(cells) == tuple(names):
        raise UsageError(f"{where}: a second header; files that were joined have to be given one by one")


def write_text(target: Path, text: str) -> None:
    """Write beside the target, then rename: what was there stays until the new text is complete.

    What is no text in UTF-8 is written in escapes. A pipe, a device, or a file in a directory
    where no other can be made is written to as it is.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    data = text.encode("utf-8", errors="backslashreplace")
    real = Path(os.path.realpath(target))  # a link goes on pointing there
    there = real.exists()
    if there and not (real.is_file() and os.access(real.parent, os.W_OK)):
        real.write_bytes(data)
        return
    beside = real.with_name(f".{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        if there:
            shutil.copymode(real, beside)
        beside.replace(real)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_or_refuse(target: Path, text: str) -> Path:
    """Write a file as `write_text` does, and return its path.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_text(target, text)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    return target
