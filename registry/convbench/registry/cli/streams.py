"""Standard output and error as the commands need them, for files, pipes and terminals."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

NAMES = ("stdin", "stdout", "stderr")


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make the streams fit for a long run, and restore them at the end.

    - One that the caller closed becomes the null device; otherwise a file of the run would get its number.
    - A character that an encoding lacks is written as an escape, such as `\\xd7`.
    - A run goes on if the reader of its standard error has ended; its messages are then discarded.
    - Only Python's `sys.stdout` leads to standard output. What a plugin's C code or child process prints goes to
      standard error, and so does not end up in JSON.
    """
    before = {name: getattr(sys, name) for name in NAMES}
    own = None
    for name in NAMES:
        if before[name] is None:
            setattr(sys, name, _null("r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        own = _apart()
        sys.stderr = cast(TextIO, _Notes(sys.stderr))
        yield
    finally:
        for name in NAMES:
            setattr(sys, name, before[name])
        if own is not None:
            with suppress(OSError):  # flushed before, or there is nowhere to write to
                os.dup2(own.fileno(), 1)
                own.close()


def discard(stream: TextIO) -> None:
    """Let what is written to a stream from here on, and what is buffered, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _null(mode: str) -> TextIO:
    descriptor = os.open(
        os.devnull, os.O_RDWR
    )  # it takes the lowest number, which is that of a closed stream
    os.set_inheritable(descriptor, descriptor <= 2)
    return cast(TextIO, open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def _apart() -> TextIO | None:
    """Give `sys.stdout` a descriptor of its own, and descriptor 1 to standard error; None where it has one."""
    stdout = sys.stdout
    try:
        if stdout.fileno() != 1:
            return None
        stdout.flush()
        buffering = 1 if stdout.isatty() else -1  # by lines, or by blocks
        own = open(  # noqa: SIM115 - closed with the context
            os.dup(1), "w", buffering, encoding=stdout.encoding, errors=stdout.errors
        )
        os.dup2(2, 1)
    except (OSError, ValueError):  # somebody's replacement, such as a test's, without a descriptor
        return None
    sys.stdout = own
    return own


class _Notes:
    """A stream that loses what cannot be written: the reader of a pipe is gone, or the disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
