"""Tell a person how a run goes: a progress bar on a terminal, a quiet line per process elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Protocol, TextIO

from convbench.results.schema import Epoch, Row

if TYPE_CHECKING:
    from convbench.suites.schedule import Task


LONGEST_TEXT = 240  # characters; results.csv has the whole


class Watcher(Protocol):
    """What a run tells as it goes."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        """The schedule is made; `kept` of the tasks were measured by the run that is resumed.

        Optional tasks are not among them; one that is started all the same comes on top.
        """

    def start(self, task: Task) -> None:
        """A process is about to start."""

    def progress(self, task: Task, epoch: Epoch) -> None:
        """An epoch of a training is over."""

    def finish(self, task: Task, row: Row) -> None:
        """A process has ended and its row is written."""

    def end(self) -> None:
        """Nothing more will come."""


class Silent:
    """Tells nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        """Nothing."""

    def start(self, task: Task) -> None:
        """Nothing."""

    def progress(self, task: Task, epoch: Epoch) -> None:
        """Nothing."""

    def finish(self, task: Task, row: Row) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines(Silent):
    """A line for every note and every process that has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total = self._done = 0

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        self._total, self._done = len(tasks), kept
        if kept:
            self.note(f"{kept} of {len(tasks)} processes were measured before and are kept")

    def start(self, task: Task) -> None:
        self._total += task.optional

    def finish(self, task: Task, row: Row) -> None:
        self._done += 1
        self.note(f"[{self._done}/{self._total}] {task.label}: {outcome(row)}")


class Bar(Silent):
    """A progress bar, with a line above it for whatever did not end well."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            refresh_per_second=2,  # a busy parent would disturb what it watches
        )
        self._all = self._bar.add_task("", total=None)
        self._going: dict[str, str] = {}  # several where devices work side by side

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        self._total = len(tasks)
        self._bar.update(self._all, total=self._total, completed=kept)
        self._bar.start()

    def start(self, task: Task) -> None:
        self._total += task.optional
        self._going[task.label] = task.label
        self._bar.update(self._all, total=self._total, description=self._now, refresh=True)

    def progress(self, task: Task, epoch: Epoch) -> None:
        reached = f"{task.label}: epoch {epoch.epoch:.3g}, accuracy {epoch.val_accuracy or 0:.3f}"
        self._going[task.label] = reached
        self._bar.update(self._all, description=self._now)

    def finish(self, task: Task, row: Row) -> None:
        self._going.pop(task.label, None)
        self._bar.advance(self._all)
        if row.status != "ok":
            self.note(f"{task.label}: {outcome(row)}")

    def end(self) -> None:
        self._bar.update(self._all, description="done")
        self._bar.stop()

    @property
    def _now(self) -> str:
        return "; ".join(self._going.values())


def watcher_for(stream: TextIO | None = None) -> Watcher:
    """A bar where `stream`, standard error by default, is a terminal; lines elsewhere."""
    stream = stream or sys.stderr
    return Bar() if stream.isatty() else Lines(stream)


def outcome(row: Row) -> str:
    """How a process ended, in a few words."""
    parts = []
    if row.images_per_second is not None:
        parts.append(f"{row.images_per_second:,.0f} images/s")
    if row.val_accuracy is not None:
        parts.append(f"accuracy {row.val_accuracy:.3f}")
    if row.kind == "verify" and row.max_error is not None:
        parts.append(f"largest error {row.max_error:.1e}")
    if row.flags is not None:
        parts.append(f"flagged {row.flags}")
    texts = [shorten(text, LONGEST_TEXT) for text in (row.notes, row.error) if text]
    detail = ", ".join(parts + texts)
    return f"{row.status}, {detail}" if detail else row.status
