"""The directory of one run: rows are appended as they come, whole or not at all, and the run can be resumed."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType

from convbench.registry.errors import ConvbenchError, UsageError
from convbench.results.schema import FILES, Combination, Combined, Epoch, Row, Sample, Trace, columns
from convbench.results.storage.csv_format import Record, difference, header, read_records, to_line
from convbench.results.storage.files import check_format, open_file, read_header, write_text

LOCK = ".lock"


class RunStore:
    """Appends to results.csv, curves.csv and samples.csv in `path`, which it alone holds until it is closed.

    Append the epochs and samples of a process first and its row last: the row says that the rest is complete.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._written: dict[str, bytearray] = {}  # by file

    @classmethod
    def create(cls, directory: Path | str, *, exact: bool = False) -> RunStore:
        """Start a run in `directory`, or in `directory-2`, `-3` ... if something is there already.

        Args:
            directory: where the run is to be written.
            exact: there and nowhere else, beside whatever is there unless that is a run too.

        Raises:
            UsageError: no directory can be made there, none can be written to, or `exact` and it holds a run.
        """
        wanted = Path(directory)
        for path in candidates(wanted):
            if exact and path != wanted:
                raise UsageError(
                    f"{wanted} holds a run already; --resume {wanted} completes it, or choose another directory"
                )
            try:
                path.mkdir(parents=True, exist_ok=True)
                if any((path / name).exists() for name in FILES) if exact else any(path.iterdir()):
                    continue
                lock = take_lock(path)
            except FileExistsError:
                raise UsageError(f"cannot write a run to {path}: it is a file") from None
            except OSError as error:
                raise UsageError(f"cannot write a run to {path}: {error.strerror}") from None
            if lock is None:  # another run has just begun here
                continue
            store = cls(path, lock)
            try:
                for name, record in FILES.items():
                    with (path / name).open("x", encoding="utf-8"):
                        pass
                    store._append(name, [header(record)])
            except FileExistsError:  # another run began and ended here between the two looks
                store.close()
                continue
            except BaseException:
                store.close()
                raise
            return store
        raise AssertionError("candidates never end")

    @classmethod
    def open(cls, directory: Path | str) -> RunStore:
        """Open a run to resume it.

        A record that a kill cut short is dropped, and so are epochs and samples whose process never got its
        row: that process is run again.

        Raises:
            UsageError: no run is there, its columns are not ours, or it is still going.
        """
        path = Path(directory)
        if not (path / "results.csv").is_file():
            raise UsageError(f"cannot resume {path}: there is no results.csv in it")
        try:
            lock = take_lock(path)
        except OSError as error:
            raise UsageError(f"cannot resume {path}: {error.strerror}") from None
        if lock is None:
            raise UsageError(f"cannot resume {path}: the run is still going")
        store = cls(path, lock)
        try:
            for name, record in FILES.items():
                repair(path / name, record)
            store._drop_orphans()
            store._note()
        except OSError as error:
            store.close()
            raise UsageError(f"cannot resume {path}: {error.strerror}") from None
        except BaseException:
            store.close()
            raise
        return store

    def append(self, row: Row) -> None:
        """Append a row to results.csv.

        Raises:
            ConvbenchError: the disk is full or the file cannot be written; the file is as it was.
        """
        self._append("results.csv", [to_line(row)])

    def append_epochs(self, epochs: Iterable[Epoch]) -> None:
        """Append rows to curves.csv, all or none; raises as `append` does."""
        self._append("curves.csv", map(to_line, epochs))

    def append_samples(self, samples: Iterable[Sample]) -> None:
        """Append rows to samples.csv, all or none; raises as `append` does."""
        self._append("samples.csv", map(to_line, samples))

    def write(self, name: str, text: str) -> None:
        """Write another file of the run.

        Raises:
            ConvbenchError: it cannot be written.
        """
        try:
            write_text(self.path / name, text)
            self._note(name)
        except OSError as error:
            raise ConvbenchError(f"cannot write {self.path / name}: {error.strerror}") from None

    def rows(self) -> list[Row]:
        """Every row so far, in the order of their processes."""
        return read_records(self.path / "results.csv", Row)

    def epochs(self) -> list[Epoch]:
        """Every epoch so far."""
        return read_records(self.path / "curves.csv", Epoch)

    def samples(self) -> list[Sample]:
        """Every sample so far."""
        return read_records(self.path / "samples.csv", Sample)

    def keep(self, rows: list[Row]) -> None:
        """Drop every row but these, with the epochs and samples of the others.

        Raises:
            ConvbenchError: the disk is full or a file cannot be written; that file is as it was.
        """
        try:
            write_text(self.path / "results.csv", header(Row) + "".join(map(to_line, rows)))
            self._drop_orphans()
            self._note()
        except OSError as error:
            raise ConvbenchError(f"cannot rewrite {self.path}: {error.strerror}") from error

    def withdraw(self, rows: list[Row], wrong: Row) -> None:
        """Put `rows` in place of all there are, and drop every epoch and sample of one row's combination.

        Raises:
            ConvbenchError: as `keep` does.
        """
        # other processes may be going whose epochs and samples have no row yet
        gone = begin(wrong)
        try:
            write_text(self.path / "results.csv", header(Row) + "".join(map(to_line, rows)))
            keep_only(self.path / "curves.csv", Epoch, lambda epoch: begin(epoch) != gone)
            keep_only(self.path / "samples.csv", Sample, lambda sample: begin(sample) != gone)
            self._note()
        except OSError as error:
            raise ConvbenchError(f"cannot rewrite {self.path}: {error.strerror}") from error

    def restore(self) -> list[str]:
        """Put back what other programs have changed in the files; returns the names of those files.

        Raises:
            ConvbenchError: a file cannot be read or written.
        """
        changed = []
        for name, written in self._written.items():
            path = self.path / name
            try:
                if not path.exists() or path.read_bytes() != written:
                    path.write_bytes(written)
                    changed.append(name)
            except OSError as error:
                raise ConvbenchError(f"cannot restore {path}: {error.strerror}") from error
        return changed

    def close(self) -> None:
        """Let another process resume the run."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, name: str, lines: Iterable[str]) -> None:
        # Text from a crashed worker may hold lone surrogates, which UTF-8 cannot.
        data = "".join(lines).encode("utf-8", errors="backslashreplace")
        path = self.path / name
        if data:
            try:
                append_whole(path, data)
            except OSError as error:
                raise ConvbenchError(f"cannot append to {path}: {error.strerror}") from error
            self._written.setdefault(name, bytearray()).extend(data)

    def _note(self, *names: str) -> None:
        """Take these files, or those of records, as they are for what was written."""
        self._written |= {name: bytearray((self.path / name).read_bytes()) for name in names or FILES}

    def _drop_orphans(self) -> None:
        rows = self.rows()
        right = [row for row in rows if row.status != "incorrect"]
        timed = {(begin(row), row.round) for row in right if row.kind == "time"}
        trained = {begin(row) for row in right if row.kind == "train"}
        keep_only(self.path / "samples.csv", Sample, lambda each: (begin(each), each.round) in timed)
        keep_only(self.path / "curves.csv", Epoch, lambda each: begin(each) in trained)


def begin(record: Row | Trace) -> tuple[str, Combination]:
    """What the epochs and samples of a row's process have in common with it."""
    return record.run_id, record.combination


def candidates(wanted: Path) -> Iterator[Path]:
    """`wanted`, then `wanted-2`, `wanted-3` and so on."""
    yield wanted
    for number in count(2):
        yield wanted.with_name(f"{wanted.name}-{number}")


def take_lock(directory: Path) -> int | None:
    """Lock a run's directory for this process, until the descriptor is closed; None if another one has it."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        # Some network file systems know no locks; a run on one is better than none.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            os.close(lock)
            raise
    return lock


def append_whole(path: Path, data: bytes) -> None:
    """Append in one write, so that a kill cuts at most the last record; undo a write that came up short."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        before = os.fstat(file).st_size
        try:
            written = os.write(file, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            with suppress(OSError):  # why the write failed is what matters; `open` cuts what is left
                os.ftruncate(file, before)
            raise
    finally:
        os.close(file)


def repair(path: Path, record: type[Combined]) -> None:
    """Cut a file back to its last whole line, and give it its header if it has none yet.

    Raises:
        UsageError: the file's columns are not ours, or it is no CSV file.
    """
    first = header(record).encode()
    content = b""
    if path.exists():
        with open_file(path) as file:
            content = file.read()
    if first.startswith(content):  # killed before the header was whole
        path.write_bytes(first)
        return
    with io.BytesIO(content) as file:
        check_format(file, path)
        names = read_header(file, path, record)
    if names != [column.name for column in columns(record)]:
        raise UsageError(
            f"cannot resume {path.parent}: {path.name} has not the columns of this version of convbench"
            f"{difference(names, record)}"
        )
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def keep_only(path: Path, record: type[Record], wanted: Callable[[Record], bool]) -> None:
    """Drop the records that are not wanted; the file is replaced at once.

    Raises:
        UsageError: a line of the file cannot be read.
    """
    every = read_records(path, record)
    kept = [each for each in every if wanted(each)]
    if len(kept) < len(every):
        write_text(path, header(record) + "".join(map(to_line, kept)))
