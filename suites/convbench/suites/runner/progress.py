"""Show how a run proceeds: a live display on a terminal, a line for each process elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, TextIO

from convbench.registry.cli.terminal import console
from convbench.results.analysis.standings import CONSEQUENCE
from convbench.results.schema import Epoch, Row
from convbench.suites.config.durations import clock, span
from convbench.suites.config.plan import obstacles
from convbench.suites.processes.protocol import Beat

if TYPE_CHECKING:
    from rich.console import RenderableType

    from convbench.suites.runner.agenda import Outlook
    from convbench.suites.runner.schedule import Task


LONGEST_TEXT = 240  # characters; results.csv has the whole
LINE_SECONDS = 30.0  # between lines that say how far a process is, where there is no terminal
BAR_WIDTH = 20
MOST_RUNNING = 8  # processes that are shown, of those that run on a cluster


class Watcher:
    """What a run tells as it goes. This one shows nothing; a subclass shows what it wants."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def stage(self, text: str) -> None:
        """What the run does between tasks, such as preparing or writing pages; empty when that is over."""

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        """The schedule is made; `kept` of the tasks were measured by the run that is resumed.

        Optional tasks are not among them; each that is started is added to the total.
        """

    def start(self, task: Task) -> None:
        """A process is about to start."""

    def beat(self, task: Task, beat: Beat) -> None:
        """How far a process is; called about once a second."""

    def progress(self, task: Task, epoch: Epoch) -> None:
        """An epoch of a training is over."""

    def finish(self, task: Task, row: Row) -> None:
        """A process has ended and its row is written."""

    def lose(self, task: Task) -> None:
        """A process was lost with its machine, and is started again on another one."""

    def outlook(self, outlook: Outlook) -> None:
        """What is left, as it looks now."""

    def end(self) -> None:
        """Nothing more will come."""


class Counting(Watcher):
    """Counts the processes of a run, and those that are over."""

    def __init__(self) -> None:
        self._total = self._done = 0

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        self._total, self._done = sum(task.planned.obstacle is None for task in tasks), kept
        if absent := not_run(tasks):
            self.note(absent)

    def start(self, task: Task) -> None:
        self._total += task.optional

    def progress(self, task: Task, epoch: Epoch) -> None:
        self.beat(task, Beat(epoch.steps, epoch.epoch, epoch.train_loss))

    def finish(self, task: Task, row: Row) -> None:
        if task.planned.obstacle is None:
            self._done += 1
            if not (row.error or "").startswith(CONSEQUENCE):
                self.ended(task, row)

    def ended(self, task: Task, row: Row) -> None:
        """A process has ended, for a reason that was not told before."""


class Lines(Counting):
    """A line for every note and every process that has ended, and from time to time one for the running one."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._stream, self._now = stream, now
        self._began = self._said = self._foretold = now()

    def note(self, text: str) -> None:
        self._said = self._now()
        print(text, file=self._stream, flush=True)

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        super().begin(tasks, kept)
        if kept:
            self.note(f"{kept} of {self._total} processes were measured before and are kept")

    def beat(self, task: Task, beat: Beat) -> None:
        if self._now() - self._said >= LINE_SECONDS:
            self.note(f"{task.label}: {reached(task, beat)}")

    def ended(self, task: Task, row: Row) -> None:
        self.note(f"[{self._done}/{self._total}] {task.label}: {outcome(row)}")

    def outlook(self, outlook: Outlook) -> None:
        if outlook.words and self._now() - self._foretold >= LINE_SECONDS:
            self._foretold = self._now()
            passed = span(self._now() - self._began)
            self.note(f"{passed} so far, about {span(outlook.seconds())} left: {outlook.words}")


@dataclass
class Running:
    """A process on the display: when it began, and how far it is."""

    name: str
    since: float
    reached: str = ""


class Bar(Counting):
    """Three lines that are refreshed: how far the run is and what is left, what is running, and what comes next.

    Above them stands a line for whatever did not end well.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        super().__init__()
        self._now = now
        self._console = console(stderr=True)
        self._began = now()
        self._stage: Running | None = None
        self._running: dict[str, Running] = {}  # by label; one, but on a cluster
        self._left: tuple[float, Outlook] | None = None  # when it was said
        self._common: set[str] = set()  # the parts that the labels of all tasks have
        self._accuracy: dict[str, float] = {}
        # a busy parent would disturb the process that is timed
        self._live = Live(
            console=self._console, get_renderable=self.lines, refresh_per_second=1, transient=True
        )

    def note(self, text: str) -> None:
        self._console.print(text)

    def stage(self, text: str) -> None:
        since = self._stage.since if text and self._stage is not None else self._now()
        self._stage = Running(text, since) if text else None
        self._live.start()  # nothing happens where it has started
        self._live.refresh()

    def begin(self, tasks: Sequence[Task], kept: int) -> None:
        self._stage = None
        super().begin(tasks, kept)
        labels = [set(task.combination.label.split("/")) for task in tasks]
        self._common = set.intersection(*labels) if labels else set()
        self._live.start()

    def start(self, task: Task) -> None:
        super().start(task)
        self._running[task.label] = Running(self._name(task), self._now())
        self._live.refresh()

    def beat(self, task: Task, beat: Beat) -> None:
        if (running := self._running.get(task.label)) is not None:
            accuracy = self._accuracy.get(task.label)
            running.reached = reached(task, beat) + (
                f", accuracy {accuracy:.3f}" if accuracy is not None else ""
            )

    def progress(self, task: Task, epoch: Epoch) -> None:
        if epoch.val_accuracy is not None:
            self._accuracy[task.label] = epoch.val_accuracy
        super().progress(task, epoch)

    def finish(self, task: Task, row: Row) -> None:
        self._running.pop(task.label, None)
        super().finish(task, row)

    def lose(self, task: Task) -> None:
        self._running.pop(task.label, None)

    def ended(self, task: Task, row: Row) -> None:
        if row.status != "ok":
            self.note(f"{task.label}: {outcome(row)}")

    def outlook(self, outlook: Outlook) -> None:
        self._left = self._now(), outlook

    def end(self) -> None:
        self._live.stop()

    def lines(self) -> RenderableType:
        """The text of the display."""
        from rich.text import Text

        now = self._now()
        words = []
        if self._total:
            full = BAR_WIDTH * min(self._done, self._total) // self._total
            words.append(f"{'━' * full}{'╌' * (BAR_WIDTH - full)} {self._done}/{self._total}")
        words.append(f"{clock(now - self._began)} so far")
        if self._left is not None:
            said, outlook = self._left
            left = outlook.seconds(now - said)
            late = outlook.limit < now - said
            words.append("the total budget is spent" if late else f"about {clock(left)} left")
        lines = ["  ".join(words)]
        # the display's thread is here while the run goes on: what it looks at may change meanwhile
        processes = [self._stage] if self._stage else list(self._running.values())
        for running in processes[:MOST_RUNNING]:
            detail = f": {running.reached}" if running.reached else ""
            lines.append(f"{running.name}{detail} ({clock(now - running.since)})")
        if len(processes) > MOST_RUNNING:
            lines.append(f"and {len(processes) - MOST_RUNNING} more")
        if self._left is not None and self._left[1].words:
            lines.append(f"then {self._left[1].words}")
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        text.stylize("bold", 0, len(lines[0]))
        return text

    def _name(self, task: Task) -> str:
        """A task without what all tasks of the run have in common."""
        parts = task.combination.label.split("/")
        short = "/".join(part for part in parts if part not in self._common)
        return task.named(short or task.combination.backend)


def watcher_for(stream: TextIO | None = None) -> Watcher:
    """A display where `stream`, standard error by default, is a terminal; lines elsewhere."""
    stream = stream or sys.stderr
    return Bar() if stream.isatty() else Lines(stream)


def not_run(tasks: Iterable[Task]) -> str:
    """What cannot run here, each reason once: `not run: cuda, triton (no CUDA device)`."""
    reasons = obstacles(task.planned for task in tasks)
    words = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return f"not run: {'; '.join(words)}" if words else ""


def reached(task: Task, beat: Beat) -> str:
    """How far a process is, in a few words."""
    if beat.epoch is None:
        return f"{beat.steps} step{'s' * (beat.steps != 1)}"
    loss = f", loss {beat.loss:.3f}" if beat.loss is not None else ""
    return f"epoch {beat.epoch:.3g} of {task.planned.recipe.epochs}{loss}"


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
