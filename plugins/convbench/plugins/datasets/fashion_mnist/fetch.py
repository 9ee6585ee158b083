"""Fetches FashionMNIST into a directory, so that nobody ever sees half of it.

One process fetches at a time, under a lock that the kernel lets go of with its holder; the others wait, and
then find the data. Everything happens in a scratch directory next to the target, and only what verified is
renamed into place, in one step: a fetch that is killed leaves a scratch directory, which the next removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import files
from convbench.registry.errors import DataError

LOCK = ".fashion-mnist.lock"
SCRATCH = ".fashion-mnist-fetching-"
POLL_SECONDS = 0.2

Note = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """One way to come by the data: `obtain(scratch)` returns a directory that it can be found under."""

    name: str
    obtain: Callable[[Path], Path]


def fetch(root: Path, ways: Sequence[Way], note: Note, wait_seconds: float) -> tuple[Path, str | None]:
    """Put a verified copy under `root`, by the first way that works.

    Returns the copy's directory and the name of the way, None if a good copy was there already.

    Raises:
        DataError: no way worked, `root` cannot be written to, or another fetch held the lock for longer than
            `wait_seconds`.
    """
    if there := _good_copy(root):
        return there, None
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root, note, wait_seconds) as alone:
            if there := _good_copy(root):  # fetched by another process while this one waited
                return there, None
            if alone:
                for leftover in root.glob(f"{SCRATCH}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=root, ignore_cleanup_errors=True) as scratch:
                ready, way = _obtain(Path(scratch), ways, note)
                _publish(ready, root / files.NAME)
            return root / files.NAME, way
    except OSError as error:
        raise DataError(f"{root} cannot be written to: {error.strerror or error}") from error


def _good_copy(root: Path) -> Path | None:
    there = files.find(root)
    return there if there and not files.problem(there) else None


def _obtain(scratch: Path, ways: Sequence[Way], note: Note) -> tuple[Path, str]:
    """Try each way in turn, and return a directory with exactly the four verified files."""
    failures = []
    for number, way in enumerate(ways):
        note(f"trying {way.name}")
        workplace, ready = scratch / f"way-{number}", scratch / f"ready-{number}"
        workplace.mkdir()
        try:
            found = way.obtain(workplace)
            files.write(files.read(files.find(found) or found), ready)
        except DataError as error:
            note(str(error))
            failures.append(str(error))
        else:
            return ready, way.name
    raise DataError("; ".join(failures))


def _publish(ready: Path, target: Path) -> None:
    """Move the verified files to `target`: all at once where nothing is there, else file by file.

    A directory with a partial or damaged copy may hold its owner's other files, which stay.
    """
    try:
        ready.rename(target)
    except OSError:
        for file in ready.iterdir():
            file.replace(target / file.name)


@contextlib.contextmanager
def _lock(root: Path, note: Note, wait_seconds: float) -> Iterator[bool]:
    """Hold the lock of `root`; yields whether it is held.

    It is not where the file system has no locks: there the renaming alone protects.
    """
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _acquire(descriptor, root, note, wait_seconds)
    finally:
        os.close(descriptor)  # and with it the lock


def _acquire(descriptor: int, root: Path, note: Note, wait_seconds: float) -> bool:
    give_up = time.monotonic() + wait_seconds
    noted = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise DataError(
                    f"another process has been fetching into {root} for {wait_seconds:.0f} s"
                ) from None
            if not noted:
                note(f"waiting for another process that is fetching into {root}")
                noted = True
            time.sleep(POLL_SECONDS)
        except OSError:
            return False
        else:
            return True
