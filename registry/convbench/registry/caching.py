"""Where convbench keeps what can be made again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """`~/.cache/convbench`, or what XDG_CACHE_HOME says.

    For a user without a home directory it is a path that cannot exist, so that nothing is read or written.
    """
    import platformdirs

    nowhere = Path(os.devnull) / "convbench"
    try:
        path = Path(platformdirs.user_cache_dir("convbench"))
    except RuntimeError:  # earlier versions of platformdirs leave the ~
        return nowhere
    return path if path.is_absolute() else nowhere


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, and move it there: other processes see all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(beside, path)
    except OSError:
        os.unlink(beside)
        raise
