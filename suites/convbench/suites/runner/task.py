"""A task's turn: what its worker is told, what that tells, and the row it ends as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from convbench.registry.discovery.plugins import describe
from convbench.results.schema import Row, Status
from convbench.suites.config.suite import Suite
from convbench.suites.processes.protocol import Event
from convbench.suites.processes.supervisor import ExitStatus
from convbench.suites.processes.survey import Peaks, Survey
from convbench.suites.runner.progress import Beat, Watcher
from convbench.suites.runner.recorder import Process, Recorder
from convbench.suites.runner.schedule import Task


@dataclass(frozen=True)
class Turns:
    """What all turns of a run share."""

    suite: Suite
    survey: Survey
    peaks: Peaks
    recorder: Recorder
    watcher: Watcher

    def obstacle(self, task: Task) -> tuple[Status, str] | None:
        """The status and reason of a task that is known not to run."""
        return task.planned.obstacle or self.recorder.found_wrong(task.combination)

    def begin(self, task: Task, timeout: float) -> Turn | None:
        """Begin a task's turn; None where that is its end too, for it is known that it cannot run.

        After `timeout` seconds its worker will be killed.
        """
        self.watcher.start(task)
        obstacle = self.obstacle(task)
        if obstacle is None:
            return Turn(self, task, self.recorder.begin(task), timeout)
        self.watcher.finish(task, self.recorder.skip(task, *obstacle))
        return None

    def leave_out(self, left: Sequence[tuple[Task, str]]) -> None:
        """Write the rows of tasks that the total budget has no time for, and say it by name."""
        said: dict[str, dict[str, None]] = {}
        for task, reason in left:
            obstacle = self.obstacle(task)
            if obstacle is not None:
                self.recorder.skip(task, *obstacle)
                continue
            self.recorder.leave_out(task, reason)
            said.setdefault(reason, {})[task.combination.label] = None
        for reason, labels in said.items():
            self.watcher.note(f"{', '.join(labels)}: {reason}")


@dataclass(frozen=True)
class Turn:
    """A task whose worker is at work."""

    turns: Turns
    task: Task
    process: Process
    timeout: float
    noise: set[str] = field(default_factory=set)

    @property
    def job(self) -> dict[str, Any]:
        """What the worker is told."""
        suite, combination = self.turns.suite, self.task.combination
        on_accelerator = combination.device != "cpu"
        timing, budget = asdict(suite.timing), asdict(suite.budget)
        if self.task.share is not None:
            timing["max_seconds"] = budget["train_seconds"] = self.task.share
        return {
            "kind": self.task.kind,
            "round": self.task.round,
            "combination": asdict(combination),
            "recipe": asdict(self.task.planned.recipe),
            "timing": timing,
            "budget": budget,
            "test_translation_px": suite.test_translation_px,
            "fuse": suite.fuse,
            "threads": suite.timing.threads,
            "data": self.turns.survey.data,
            "peaks": self.turns.peaks.get(combination.device, {}).get(combination.dtype),
            "num_classes": self.turns.recorder.num_classes(suite.dataset),
            # CUDA reserves far more than it uses; out-of-memory there is the device's to say
            "memory_mb": None if on_accelerator else suite.budget.memory_mb,
        }

    def take(self, event: Event) -> None:
        """Take in what the worker tells."""
        watcher = self.turns.watcher
        try:
            if event["event"] == "foreign":
                raise ValueError("it does not carry the mark of ours")
            if event["event"] == "note":
                watcher.note(event["text"])
            elif event["event"] == "beat":
                watcher.beat(self.task, Beat(event["steps"], event["epoch"], event["loss"]))
            elif event["event"] == "epoch":
                watcher.progress(self.task, self.process.epoch(event))
            else:
                self.process.take(event)
        except (KeyError, TypeError, ValueError) as error:  # a plugin wrote to the descriptor of events
            if not self.noise:
                watcher.note(f"{self.task.label}: what is no event was dropped ({describe(error)})")
            self.noise.add(describe(error))

    def finish(self, ending: ExitStatus) -> Row:
        """The worker has ended: write its row."""
        row = self.process.finish(ending, self.timeout)
        self.turns.watcher.finish(self.task, row)
        return row
