"""Fetch FashionMNIST: briefly at first use, or ahead of a run with `convbench data fetch`.

A benchmark's worker must not spend its time on the network. At first use only torchvision's download is tried, for
at most a minute. A failure is stored in the user's cache for an hour, so that not every worker of a run tries
again. `convbench data fetch` takes longer, tries every way, and ignores earlier failures.

A copy appears as a whole. One process fetches at a time, under a lock that the kernel releases when the process
ends; the others wait, and then find the data. Files are written into a scratch directory beside the target, and
renamed once they are verified. A fetch that is killed leaves its scratch directory, which the next one removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import debian_package, files, sources, torchvision_download
from convbench.plugins.datasets.fashion_mnist.sources import Source
from convbench.plugins.datasets.fashion_mnist.torchvision_download import Patience
from convbench.registry.errors import DataError

AT_FIRST_USE = Patience(deadline_seconds=60, silence_seconds=10)
AHEAD = Patience(deadline_seconds=900, silence_seconds=30)
REMEMBERED_SECONDS = 3600
MEMORY = "fashion-mnist-download-failed.json"
LOCK = ".fashion-mnist.lock"
SCRATCH = ".fashion-mnist-fetching-"
POLL_SECONDS = 0.2

Note = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """A way to fetch the data: `obtain(scratch)` returns a directory that contains it."""

    name: str
    obtain: Callable[[Path], Path]


def at_first_use(note: Note) -> str | None:
    """Try to download into the cache; returns why it failed, None if the data is there."""
    if lately := failed_lately():
        return lately

    def once(scratch: Path) -> Path:
        if lately := failed_lately():  # in another process, while this one waited for the lock
            raise DataError(lately)
        return _from_torchvision(scratch, AT_FIRST_USE)

    try:
        ways = [Way("torchvision's download", once)]
        fetch(sources.cache_root(), ways, note, wait_seconds=AT_FIRST_USE.deadline_seconds)
    except DataError as error:
        if not failed_lately():  # a full disk, for example: it would fail again
            _remember(str(error))
        return str(error)
    return None


def ahead(root: Path | None, note: Note) -> tuple[Path, str | None]:
    """Fetch to where it is looked for first: `root`, or CONVBENCH_DATA, or the cache.

    Returns the directory of the copy, and the way it was fetched by, None if it was there already.

    Raises:
        DataError: no way worked.
    """
    places = [(place, place.root) for place in sources.sources(root) if place.root is not None]
    target, target_root = places[0]
    for place, place_root in places:
        directory = files.find(place_root)
        if directory and not files.problem(directory):
            return directory, None
        if directory or place.required:  # the places after it would not be used
            break
    ways = [
        *(Way(f"the copy in {there}", partial(_there, there)) for there in _elsewhere(places[1:])),
        Way("torchvision's download", partial(_from_torchvision, patience=AHEAD)),
        Way("Debian's package", debian_package.obtain),
    ]
    try:
        return fetch(target_root, ways, note, wait_seconds=AHEAD.deadline_seconds)
    except DataError as error:
        without = f" without {target.name}" if target.required else ""
        raise DataError(
            f"FashionMNIST not fetched: {error}; runs{without} use the embedded sample"
        ) from error


def _elsewhere(places: list[tuple[Source, Path]]) -> Iterator[Path]:
    """Directories of copies that are on this machine already, valid or not."""
    for _, root in places:
        if directory := files.find(root):
            yield directory


def _there(directory: Path, scratch: Path) -> Path:
    """A copy that is on this machine; it is verified when it is copied."""
    return directory


def failed_lately() -> str | None:
    """How a download failed within the last hour, as a clause; None if none failed."""
    try:
        memory = json.loads(_memory().read_text(encoding="utf-8-sig"))
        age, why = time.time() - float(memory["failed_at"]), str(memory["why"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # there is no such file, or it is damaged
        return None
    if not 0 <= age < REMEMBERED_SECONDS:
        return None
    return f"a download failed {age / 60:.0f} min ago and is not tried again within the hour: {why}"


def _from_torchvision(scratch: Path, patience: Patience) -> Path:
    """Download, and store a failure."""
    try:
        directory = torchvision_download.download(scratch, patience)
    except DataError as error:
        _remember(str(error))
        raise
    with contextlib.suppress(OSError):
        _memory().unlink()
    return directory


def _remember(why: str) -> None:
    path = _memory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"failed_at": time.time(), "why": why}), encoding="utf-8")
    except OSError:
        return  # then the next process tries again


def _memory() -> Path:
    return sources.cache_root() / MEMORY


def fetch(root: Path, ways: Sequence[Way], note: Note, wait_seconds: float) -> tuple[Path, str | None]:
    """Put a verified copy under `root`, by the first way that works.

    Returns the copy's directory and the name of the way, None if a valid copy was there already.

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
    """Hold the lock of `root`; yields False if the file system has no locks. Then only the renaming protects."""
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
