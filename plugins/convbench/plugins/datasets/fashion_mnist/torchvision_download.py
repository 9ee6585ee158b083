"""Download FashionMNIST through torchvision, in a child process that is killed at its deadline.

torchvision sets no timeout on its connections, and Python cannot interrupt a name server's delay. A child process
can have both limits without changing those of this process.
"""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from convbench.registry.errors import DataError

ATTEMPTS = 2  # complete files are kept for the second one
ORPHAN_SECONDS = 5  # after its deadline, a child whose parent was killed ends itself


@dataclass(frozen=True)
class Patience:
    """How long a download may take in all, and how long a connection may stay silent."""

    deadline_seconds: int
    silence_seconds: int


def download(into: Path, patience: Patience) -> Path:
    """Let torchvision download the dataset under `into`, and return that directory.

    Progress is shown on stderr if that is a terminal.

    Raises:
        DataError: it did not succeed within the deadline.
    """
    command = [sys.executable, "-P", "-m", __name__]
    command += [str(into), str(patience.deadline_seconds), str(patience.silence_seconds)]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=patience.deadline_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"torchvision's download took longer than {patience.deadline_seconds} s") from error
    if child.returncode != 0:
        said = (child.stdout or child.stderr or "").strip().splitlines()
        reason = said[-1] if said else f"its process ended with {child.returncode}"
        raise DataError(f"torchvision's download failed: {reason}")
    return into


def download_here(into: str, silence_seconds: float) -> str | None:
    """Download in this process; returns why it failed, None if it did not."""
    socket.setdefaulttimeout(silence_seconds)
    failure = None
    for _ in range(ATTEMPTS):
        try:
            from torchvision.datasets import FashionMNIST

            FashionMNIST(into, download=True)
        except (ImportError, RuntimeError, OSError, http.client.HTTPException) as error:
            lines = str(error).strip().splitlines()
            failure = lines[-1] if lines else type(error).__name__
        else:
            return None
    return failure


def main() -> None:
    into, deadline_seconds, silence_seconds = sys.argv[1:]
    signal.alarm(int(deadline_seconds) + ORPHAN_SECONDS)
    if failure := download_here(into, float(silence_seconds)):
        print(failure)
        sys.exit(1)


if __name__ == "__main__":
    main()
