"""Predict how long processes will take, from those that have ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from convbench.results.schema import Combination, Row
from convbench.suites.config.durations import span
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Suite
from convbench.suites.runner.schedule import Task

START_SECONDS = 6.0  # before the first process and after the last: survey, peaks, pages
FASTEST_SECONDS = 0.8  # of a process with the least work
SLOW_CHECK_SECONDS = 5.0  # of the verification in each process of a slow backend
FIRST_SECONDS = 3.0  # of a process of which nothing is known yet
EVALUATED = 0.4  # of a training step: what the forward pass of an evaluation takes for as many images


@dataclass(frozen=True)
class Training:
    """What a training would take: seconds of its steps, of its evaluations, and of all else, set-up and checks."""

    steps: float
    evaluations: float
    other: float
    epochs: int

    @property
    def seconds(self) -> float:
        """Of the whole process."""
        return self.steps + self.evaluations + self.other

    def share_of(self, seconds: float) -> float:
        """How many of these seconds are left for steps."""
        return max(0.0, seconds - self.other) / (1 + self.evaluations / self.steps)

    @property
    def first_epoch(self) -> float:
        """Seconds until the first epoch is over and evaluated."""
        return (self.steps + self.evaluations) / self.epochs + self.other


@dataclass
class Forecast:
    """Learns from every row of a run; images are those of the dataset's two splits."""

    suite: Suite
    train_images: int
    test_images: int
    _known: dict[tuple[str, Combination], float] = field(default_factory=dict)

    def learn(self, rows: Iterable[Row]) -> None:
        """Learn how long processes took."""
        for row in rows:
            took = row.process_seconds
            if not row.is_measured or took is None:
                continue
            found: dict[str, float] = {row.kind: took}
            if row.kind == "time" and row.step_ms_median is not None:
                found["step"] = row.step_ms_median / 1000
                stepping = found["step"] * ((row.steps or 0) + self.suite.timing.warmup_steps)
                found["other"] = max(0.5, took - stepping)
            elif row.kind == "train" and row.steps and row.train_seconds:
                found["step"] = row.train_seconds / row.steps
            for name, value in found.items():
                self._known[name, row.combination] = self._known[name, any_seed(row.combination)] = value

    def seconds(self, task: Task) -> float:
        """How long a process will take, from its start to its end."""
        if task.kind == "train":
            training = self.training(task)
            if training is None:
                return self._most(task) + self._verification(task)
            part = min(1.0, self._most(task) / training.steps)
            return part * (training.steps + training.evaluations) + training.other
        known = self._of(task.kind, task.combination)
        if known is not None:
            return known
        if task.kind == "verify":
            return self._verification(task)
        return self._verification(task) + 2 * min(self._most(task), 1.0)

    def training(self, task: Task) -> Training | None:
        """What a training to its end would take; None where no step of it was timed."""
        combination, recipe, batch = task.combination, task.planned.recipe, task.combination.batch_size
        step = self._of("step", combination)
        if step is None:
            return None
        images, tested = self.train_images, self.test_images
        if task.planned.problem is not None:
            images = tested = batch
        steps = recipe.epochs * math.ceil(images / batch) * step
        evaluation = recipe.epochs * math.ceil(tested / batch) * step * EVALUATED
        other = self._of("other", combination)
        return Training(steps, evaluation, other or self._verification(task), recipe.epochs)

    def _most(self, task: Task) -> float:
        """The longest that its steps may take."""
        if task.share is not None:
            return task.share
        return self.suite.budget.train_seconds if task.kind == "train" else self.suite.timing.max_seconds

    def _verification(self, task: Task) -> float:
        known = self._of("verify", task.combination)
        if known is not None:
            return known
        others = [took for (kind, _), took in self._known.items() if kind == "verify"]
        return mean(others) if others else FIRST_SECONDS

    def _of(self, what: str, combination: Combination) -> float | None:
        """What is known of a combination, or else of the same one with another seed."""
        return self._known.get((what, combination), self._known.get((what, any_seed(combination))))


def before_anything(
    suite: Suite, planned: Sequence[Planned], *, time: bool, train: bool, slots: int = 1
) -> str:
    """How long a run will take, in a sentence, before anything was measured.

    Between a machine on which every process is over at once, and one on which each uses up its budget; a cluster
    has several `slots` for processes.
    """
    able = [entry for entry in planned if entry.obstacle is None]
    rounds = suite.timing.rounds if time else 0
    trained = sum(entry.trains for entry in able) if train else 0
    processes = len(able) * (1 + rounds) + trained
    least = START_SECONDS + FASTEST_SECONDS * processes / slots
    most = (
        SLOW_CHECK_SECONDS * processes
        + 2 * suite.timing.max_seconds * len(able) * max(rounds, suite.timing.max_rounds or 0 if time else 0)
        + suite.budget.train_seconds * trained
    )
    most = START_SECONDS + most / slots
    total, between = suite.budget.total_seconds, f"between {span(least)} and {span(most)}"
    if span(least) == span(most):
        between = f"about {span(most)}"
    if total is None:
        return f"it takes {between}; once something was timed, the run says more"
    if most <= total:
        return f"it takes {between}"
    return (
        f"it takes {span(total)} at most, its total budget (without one it could be {span(most)}); "
        "what there is no time for is named"
    )


def any_seed(combination: Combination) -> Combination:
    """The combination without its seed, under which what is known of other seeds is found."""
    return replace(combination, seed=-1)
