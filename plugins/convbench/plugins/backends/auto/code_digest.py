"""A digest of the code that a plugin's answers come from, so that changed code is another plugin.

A version number does not change while somebody works on a plugin, and its kernels do.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path

CODE = frozenset(
    {".c", ".cc", ".cpp", ".cu", ".cuh", ".dll", ".dylib", ".h", ".hpp", ".py", ".pyd", ".pyx", ".rs", ".so"}
)


def digest_of(module: str) -> str:
    """Of the outermost package that a loaded module is in, or of its file if it is in none; by content."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        loaded = sys.modules.get(".".join(parts[:length]))
        file = getattr(loaded, "__file__", None)  # a namespace package has none
        if file is not None:
            path = Path(file)
            return _digest(path.parent if path.name == "__init__.py" else path)
    return "unknown"


@cache
def _digest(root: Path) -> str:
    if root.is_file():
        return hashlib.sha256(root.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in CODE and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]
