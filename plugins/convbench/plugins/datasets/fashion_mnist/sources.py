"""The places where FashionMNIST is looked for, in this order:

1. the directory given as `--data-dir` (or `root`);
2. the directory named by the environment variable CONVBENCH_DATA;
3. the user's cache, which `convbench data fetch` fills;
4. the system copy of Debian's package dataset-fashion-mnist.

If one of the first two is given and does not hold the data, that is an error; the others may be empty. A damaged
or partial copy is an error in any of them.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import files
from convbench.registry.caching import cache_directory
from convbench.registry.errors import DataError

VARIABLE = "CONVBENCH_DATA"
SYSTEM_ROOT = Path("/usr/share/datasets")


@dataclass(frozen=True)
class Source:
    """A place: its name for the user, its directory if there is one, and whether it must hold the data."""

    name: str
    root: Path | None
    required: bool = False

    @property
    def remedy(self) -> str:
        """The command that puts a valid copy where it is found first."""
        command = "convbench data fetch"
        return f"{command} --data-dir {shlex.quote(str(self.root))}" if self.required else command


def sources(root: Path | None) -> tuple[Source, ...]:
    """The four places, in order, with `root` as the first."""
    variable = os.environ.get(VARIABLE)
    return (
        Source("--data-dir", root, required=True),
        Source(VARIABLE, _expanded(variable) if variable else None, required=True),
        Source("cache", cache_root()),
        Source("system", SYSTEM_ROOT),
    )


def _expanded(variable: str) -> Path:
    try:
        return Path(variable).expanduser()
    except RuntimeError:
        raise DataError(
            f"{VARIABLE} is {variable!r}, and there is no home directory to put in place of its ~"
        ) from None


def cache_root() -> Path:
    """The user's cache directory, `~/.cache/convbench` or what XDG_CACHE_HOME says."""
    return cache_directory()


def chosen(root: Path | None) -> tuple[Source, Path] | None:
    """The first source that has a copy, and the directory of that copy, not verified yet.

    Raises:
        DataError: a directory that was given holds none of the files.
    """
    for source in sources(root):
        if source.root is None:
            continue
        if directory := files.find(source.root):
            return source, directory
        if source.required:
            raise DataError(absent(source))
    return None


def absent(source: Source) -> str:
    """The message for a directory that was given and does not hold the data."""
    names = ", ".join(file.name for file in files.FULL)
    return (
        f"{source.name} {source.root} does not hold FashionMNIST: expected {names}, each plain or .gz, in it"
        f" or in its {files.LAYOUTS[0]} or {files.LAYOUTS[1]} folder; `{source.remedy}` fetches them there"
    )


def read(source: Source, directory: Path) -> tuple[bytearray, ...]:
    """Read and verify the chosen copy.

    Raises:
        DataError: the copy is damaged or partial; the message says what to do.
    """
    try:
        return files.read(directory)
    except DataError as error:
        raise DataError(f"{error}; `{source.remedy}` puts a good copy first in order") from error
