"""Where convbench keeps what can be made again."""

from __future__ import annotations

import os
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
