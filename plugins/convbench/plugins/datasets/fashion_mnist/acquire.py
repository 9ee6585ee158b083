"""Which ways to the data are tried: few and short at first use, all of them when fetching ahead.

A benchmark's worker must not spend its time on the network. At first use torchvision alone is tried, for at
most a minute, and a failure is remembered for an hour in the user's cache, so that the many workers of a run
on a machine without a network do not each try again. `convbench data fetch` takes its time, and does not mind
what is remembered.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import debian_package, files, sources, torchvision_download
from convbench.plugins.datasets.fashion_mnist import fetch as fetching
from convbench.plugins.datasets.fashion_mnist.fetch import Note, Way
from convbench.plugins.datasets.fashion_mnist.sources import Source
from convbench.plugins.datasets.fashion_mnist.torchvision_download import Patience
from convbench.registry.errors import DataError

AT_FIRST_USE = Patience(deadline_seconds=60, silence_seconds=10)
AHEAD = Patience(deadline_seconds=900, silence_seconds=30)
REMEMBERED_SECONDS = 3600
MEMORY = "fashion-mnist-download-failed.json"


def at_first_use(note: Note) -> str | None:
    """Try to download into the cache; return why there is still no data, None when there is."""
    if lately := failed_lately():
        return lately

    def once(scratch: Path) -> Path:
        if lately := failed_lately():  # in another process, while this one waited for the lock
            raise DataError(lately)
        return _from_torchvision(scratch, AT_FIRST_USE)

    try:
        ways = [Way("torchvision's download", once)]
        fetching.fetch(sources.cache_root(), ways, note, wait_seconds=AT_FIRST_USE.deadline_seconds)
    except DataError as error:
        if not failed_lately():  # not torchvision's failure, but a full disk, say: as little worth repeating
            _remember(str(error))
        return str(error)
    return None


def ahead(root: Path | None, note: Note) -> tuple[Path, str | None]:
    """Fetch to where it is looked for first: `root`, or CONVBENCH_DATA, or the cache.

    Returns the directory of the copy that will be used, and the way it came, None if it was there already.

    Raises:
        DataError: no way worked.
    """
    places = [(place, place.root) for place in sources.sources(root) if place.root is not None]
    target, target_root = places[0]
    for place, place_root in places:
        directory = files.find(place_root)
        if directory and not files.problem(directory):
            return directory, None
        if directory or place.required:  # it stands in the way of those after it
            break
    ways = [
        *(Way(f"the copy in {there}", partial(_there, there)) for there in _elsewhere(places[1:])),
        Way("torchvision's download", partial(_from_torchvision, patience=AHEAD)),
        Way("Debian's package", debian_package.obtain),
    ]
    try:
        return fetching.fetch(target_root, ways, note, wait_seconds=AHEAD.deadline_seconds)
    except DataError as error:
        without = f" without {target.name}" if target.required else ""
        raise DataError(
            f"FashionMNIST not fetched: {error}; runs{without} use the embedded sample"
        ) from error


def _elsewhere(places: list[tuple[Source, Path]]) -> Iterator[Path]:
    """Directories of the copies that are on this machine already, good or not."""
    for _, root in places:
        if directory := files.find(root):
            yield directory


def _there(directory: Path, scratch: Path) -> Path:
    """The way to a copy that is on this machine: nothing to do, since it is verified as it is copied."""
    return directory


def failed_lately() -> str | None:
    """How a download failed within the last hour, as a clause of a sentence; None if none did."""
    try:
        memory = json.loads(_memory().read_text(encoding="utf-8-sig"))
        age, why = time.time() - float(memory["failed_at"]), str(memory["why"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or not one of ours
        return None
    if not 0 <= age < REMEMBERED_SECONDS:
        return None
    return f"a download failed {age / 60:.0f} min ago and is not tried again within the hour: {why}"


def _from_torchvision(scratch: Path, patience: Patience) -> Path:
    """Download, and remember whether it failed."""
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
        return  # a cache that cannot be written to costs another attempt, no more


def _memory() -> Path:
    return sources.cache_root() / MEMORY
