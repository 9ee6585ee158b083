"""Messages while `auto` times backends, which takes seconds for each call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)  # plain Python prints its warnings, and workers forward them to the user

SILENT, EVERY = 2.0, 15.0  # seconds before the first message, and between two


class Progress:
    """Logs what is timed, after the first seconds and then now and again.

    Args:
        root: the directory of the decisions.
        clock: in seconds.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._calls = 0  # that were decided
        self._seconds = 0.0  # that they took
        self._next = SILENT  # seconds until the next message
        self._began = 0.0
        self._call: object = None

    @contextmanager
    def of(self, call: object) -> Iterator[None]:
        """Wrap the decision of one call, which may need those of others."""
        outer = self._call
        if outer is not None:
            self._seconds += self._clock() - self._began
        self._began, self._call = self._clock(), call
        try:
            yield
        finally:
            self._seconds += self._clock() - self._began
            self._calls += 1
            self._began, self._call = self._clock(), outer

    def __call__(self, doing: str) -> None:
        """Report the next step, such as `trying im2col`."""
        spent = self._seconds + self._clock() - self._began
        if spent < self._next:
            return
        self._next = spent + EVERY
        each = f"{self._seconds / self._calls:.1f} s each so far" if self._calls else "some seconds each"
        log.warning(
            "auto times the backends once for every new call, %s: %d decided in %.0f s, now %s (%s). "
            "Decisions are kept in %s",
            each,
            self._calls,
            spent,
            self._call,
            doing,
            self._root,
        )
