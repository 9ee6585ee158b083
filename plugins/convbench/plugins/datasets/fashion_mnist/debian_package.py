"""Take FashionMNIST from Debian's package dataset-fashion-mnist; nothing is installed, and root is not needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from convbench.registry.errors import DataError

PACKAGE = "dataset-fashion-mnist"
INSIDE = Path("usr/share/datasets/fashion-mnist")
DEADLINE_SECONDS = 600
OPTIONS = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")


def unavailable() -> str | None:
    """Why the package cannot be taken on this machine; None if it can be tried."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    return f"this machine has no {' and no '.join(missing)}" if missing else None


def obtain(into: Path) -> Path:
    """Download and unpack the package under `into`, and return the directory with the data files.

    Raises:
        DataError: apt-get is missing, does not know the package, or cannot reach its archive.
    """
    if reason := unavailable():
        raise DataError(f"Debian's {PACKAGE} cannot be taken: {reason}")
    # apt-get writes to the current directory. As root it warns that its user `_apt` may not write there, and
    # continues as root. Its messages are shown only if it fails.
    said, failed = _run(["apt-get", *OPTIONS, "download", PACKAGE], into)
    packages = sorted(into.glob(f"{PACKAGE}_*.deb"))
    if failed or not packages:
        raise DataError(f"apt-get could not download {PACKAGE}: {_reason(said)}")
    said, failed = _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], into)
    if failed:
        raise DataError(f"dpkg-deb could not unpack {packages[0].name}: {_reason(said)}")
    return into / "unpacked" / INSIDE


def _run(command: list[str], directory: Path) -> tuple[str, bool]:
    """Run a command in `directory`; return what it said to stderr, in English, and whether it failed."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=DEADLINE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {DEADLINE_SECONDS} s", True
    except OSError as error:
        return f"it could not be started ({error})", True
    return done.stderr, done.returncode != 0


def _reason(said: str) -> str:
    """The first error among what apt or dpkg said, with what to do where that is known."""
    errors = [line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("E:")]
    lines = errors or said.strip().splitlines() or ["it gave no reason"]
    if "Unable to locate package" in lines[0] or "Can't find a source" in lines[0]:
        return "its package lists are absent or do not have it; `apt-get update` as root gets them"
    return lines[0].rstrip(".")
