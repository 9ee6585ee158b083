"""Writes a file whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


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
