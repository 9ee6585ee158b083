"""Cubins on disk, so that a kernel is compiled once per machine and not once per process.

An entry is named after all that it depends on: source, headers, macros and architecture, NVRTC and the driver. It
begins with a checksum of the rest: one that was cut short or damaged is made again. Entries are written beside
their place and renamed, so that processes that run at the same time see whole ones only. Where nothing can be
written, each process compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from convbench.plugins.backends.cuda import compiler
from convbench.plugins.backends.cuda.programs import Program
from convbench.registry.caching import cache_directory

CHECKSUM = 32  # bytes


def folder() -> Path:
    """`cubins` in the user's cache directory, which is `~/.cache/convbench` or what XDG_CACHE_HOME says."""
    return cache_directory() / "cubins"


def cubin(program: Program, architecture: str, driver: str, place: Path | None = None) -> bytes:
    """The cubin of a program, from disk or compiled now.

    Args:
        program: what to compile.
        architecture: `sm_90` and so on.
        driver: its version; a new one asks for new cubins.
        place: the folder of the entries; `folder()` when None.

    Raises:
        CompilationFailed: there is no entry, and no compiling either.
    """
    path = entry(program, architecture, driver, place)
    kept = _read(path)
    if kept is not None:
        return kept
    made = program.compiled(architecture).cubin
    with suppress(OSError):  # no room, no permission
        _write(path, made)
    return made


def entry(program: Program, architecture: str, driver: str, place: Path | None = None) -> Path:
    """The file that has the cubin, or will."""
    parts = program.digest(architecture), architecture, driver, *map(str, compiler.version())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return (place or folder()) / f"{program.path.stem}-{architecture}-{key[:32]}.cubin"


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, kept = content[:CHECKSUM], content[CHECKSUM:]
    return kept if hashlib.sha256(kept).digest() == checksum else None


def _write(path: Path, made: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(hashlib.sha256(made).digest() + made)
    try:
        os.replace(file.name, path)
    except OSError:
        Path(file.name).unlink(missing_ok=True)
        raise
