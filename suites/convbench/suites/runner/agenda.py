"""Choose the task that comes next.

Without a total budget the order is made ahead (`schedule`), and optional rounds are run where intervals are wide.
With one, what comes next depends on what was measured: every verification; one round of everything; the trainings
that can finish; the rest of the rounds; verifications that there was no time for at first; further rounds where
intervals are wide; and, with what is left, the beginnings of other trainings. Tasks that do not fit are left out,
and named.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from convbench.results.analysis.standings import BASELINE
from convbench.results.schema import Combination, Row
from convbench.suites.config.durations import span
from convbench.suites.config.suite import Suite
from convbench.suites.runner.forecast import Forecast
from convbench.suites.runner.schedule import Task, enough

# of the total: the timed steps of all rounds; warm-ups take as much at most, checks come on top
STEPS_SHARE = 0.15
STEPS_SHARE_ALONE = 0.3  # where nothing is trained
PAGES_SECONDS = 4.0  # for the tables and the report
MARGIN = 1.1  # by which a training that is predicted to finish must fit
VERIFICATIONS_SHARE = 0.4  # of the total; then what is verified is timed first
GRACE_SECONDS = 60.0  # for which a process that is about to end may exceed the total


@dataclass(frozen=True)
class Outlook:
    """What is left of a run: the seconds of the current process and of those after it, and these in words.

    `limit` is how many seconds of a total budget are left.
    """

    current: float
    ahead: float
    words: str
    limit: float = math.inf

    def seconds(self, passed: float = 0.0) -> float:
        """How long the run will still take, after so many further seconds of the current process."""
        return max(0.0, min(max(0.0, self.current - passed) + self.ahead, self.limit - passed))


TaskId = tuple[str, int, Combination]


@dataclass
class Agenda:
    """Hands out the tasks of a run, one after the other.

    Attributes:
        tasks: all of them, in the order in which they were scheduled.
        done: those that were measured before.
        forecast: how long they will take.
        blocked: whether it is known of a task that it cannot run, so that its row costs no time.
        timed: the timing rows of a combination so far.
        deadline: when the total budget ends, on the clock `now`; never without one.
        order: the numbers of the processes to come, where the order is not that of the schedule; agendas of one
            run share them.
    """

    suite: Suite
    tasks: Sequence[Task]
    forecast: Forecast
    blocked: Callable[[Task], bool]
    timed: Callable[[Combination], Iterable[Row]]
    done: Iterable[TaskId] = ()
    deadline: float = math.inf
    now: Callable[[], float] = time.monotonic
    order: Iterator[int] = field(default_factory=itertools.count)
    _waiting: OrderedDict[TaskId, Task] = field(init=False)
    _current: Task | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        done = set(self.done)
        self._waiting = OrderedDict((slot(task), task) for task in self.tasks if slot(task) not in done)

    def next(self) -> Task | None:
        """The task that comes next, with its share of the total budget; None where nothing more is to be run."""
        self._current = chosen = self._by_budget() if self.limited else self._by_schedule()
        if chosen is not None and self.limited:
            del self._waiting[slot(chosen)]
            self._current = replace(chosen, order=next(self.order))
        return self._current

    def take(self, task: Task) -> Task:
        """A task that others have chosen, with its share of the total budget; it no longer waits."""
        self._waiting.pop(slot(task), None)
        if not self.limited or task.kind == "verify":
            return task
        if task.kind == "train":
            return self._training_for(task, max(self.left, 0.0))
        return replace(task, share=self._round_share())

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Tasks that were taken wait again."""
        self._waiting.update((slot(task), task) for task in tasks)

    def left_out(self) -> list[tuple[Task, str]]:
        """The tasks that do not fit into the total budget, and why; called once `next` has returned None."""
        left = [task for task in self._waiting.values() if not task.optional]
        self._waiting.clear()
        unverified = {task.combination for task in left if task.kind == "verify"}
        rounds: dict[Combination, list[str]] = {}
        for task in left:
            if task.kind == "time":
                rounds.setdefault(task.combination, []).append(str(task.round + 1))
        spent = f"left out: the total budget of {span(self.suite.budget.total_seconds or 0.0)} was spent"
        return [
            (
                replace(task, order=next(self.order)),
                f"verification {spent}"
                if task.combination in unverified
                else f"{rounds_of(rounds[task.combination])} {spent}"
                if task.kind == "time"
                else self._why_untrained(task, spent),
            )
            for task in left
        ]

    def outlook(self) -> Outlook:
        """What is left, the current task included; optional rounds only where it is known that they are needed."""
        share = self._round_share()
        able = [
            replace(task, share=share) if task.kind == "time" else task
            for task in self._waiting.values()
            if not self.blocked(task)
            and not (task.optional and (self._unsure(task) or not self.needed(task)))
        ]
        if self.limited:
            able = [task for task in able if task.kind != "train" or self._predicted(task) <= self.left]
        current = self._predicted(self._current) if self._current is not None else 0.0
        return Outlook(current, sum(map(self._predicted, able)), in_words(able), self.left)

    def timeout(self) -> float:
        """Seconds after which the current worker is killed."""
        return min(self.suite.budget.timeout_seconds, max(self.left, 0.0) + GRACE_SECONDS)

    @property
    def limited(self) -> bool:
        """Whether there is a total budget."""
        return self.deadline < math.inf

    @property
    def left(self) -> float:
        """Seconds until the total budget ends, less what the pages take."""
        return self.deadline - self.now() - PAGES_SECONDS

    def needed(self, task: Task) -> bool:
        """Whether a task is run at all: an optional round is not, once there are enough rounds."""
        return not task.optional or not enough(self.timed(task.combination), self.suite.timing.precision)

    def _unsure(self, task: Task) -> bool:
        """Whether it is too early to tell if an optional round is needed."""
        return sum(1 for _ in self.timed(task.combination)) < self.suite.timing.rounds

    def _predicted(self, task: Task) -> float:
        return 0.0 if self.blocked(task) else self.forecast.seconds(task)

    def _by_schedule(self) -> Task | None:
        while self._waiting:
            _, task = self._waiting.popitem(last=False)
            if self.needed(task):
                return task
        return None

    def _by_budget(self) -> Task | None:
        """What comes next under a total budget; the first kind of task that has one decides."""
        waiting = self._waiting.values()
        free = next((task for task in waiting if not task.optional and self.blocked(task)), None)
        if free is not None:
            return free
        verifications = sorted(
            (task for task in waiting if task.kind == "verify"), key=lambda task: not is_baseline(task)
        )
        total = self.suite.budget.total_seconds or 0.0
        none_yet = len(verifications) == sum(task.kind == "verify" for task in self.tasks)
        if verifications and self.left > (0 if none_yet else (1 - VERIFICATIONS_SHARE) * total):
            return verifications[0]
        unverified = {task.combination for task in verifications}
        share = self._round_share()
        rounds = [
            replace(task, share=share)
            for task in waiting
            if task.kind == "time" and task.combination not in unverified
        ]
        least = [task for task in rounds if not task.optional]
        first = next((task for task in least if task.round == 0), None)
        if first is not None and self.left > 0:
            return first
        trainings = [task for task in waiting if task.kind == "train" and task.combination not in unverified]
        wide = [task for task in rounds if task.optional and self.needed(task)]
        return (
            self._training_that_finishes(trainings, self.left - sum(map(self._predicted, least)))
            or next(
                (task for task in (*least, *verifications, *wide) if self._predicted(task) <= self.left), None
            )
            or self._training_that_begins(trainings, self.left)
        )

    def _round_share(self) -> float | None:
        """Seconds of the total that each timing round may spend on its steps."""
        if not self.limited:
            return None
        trains = any(task.kind == "train" for task in self.tasks)
        able = sum(
            task.kind == "time" and not task.optional and not self.blocked(task) for task in self.tasks
        )
        part = (self.suite.budget.total_seconds or 0.0) * (STEPS_SHARE if trains else STEPS_SHARE_ALONE)
        return min(self.suite.timing.max_seconds, part / max(able, 1))

    def _training_that_finishes(self, trainings: Sequence[Task], seconds: float) -> Task | None:
        """A training that is predicted to finish in so many seconds: the baseline's first, then the shortest.

        Where nothing was timed that a prediction could rest on, each has an equal part of them.
        """
        known, unknown = [], []
        for task in trainings:
            training = self.forecast.training(task)
            if training is None:
                unknown.append(task)
            elif MARGIN * training.seconds <= seconds and training.steps <= self.suite.budget.train_seconds:
                known.append((not is_baseline(task), training.seconds, task.order, task, training))
        if known:
            *_, task, training = min(known, key=lambda each: each[:3])
            return self._training_for(task, training.share_of(seconds))
        if unknown and seconds > 0:
            return self._training_for(unknown[0], seconds / len(trainings))
        return None

    def _training_that_begins(self, trainings: Sequence[Task], seconds: float) -> Task | None:
        """A training that cannot finish, but has time for an epoch at least, and so for an accuracy."""
        found = [
            (training.first_epoch * MARGIN, task.order, task, training)
            for task in trainings
            if (training := self.forecast.training(task)) is not None
        ]
        found.sort(key=lambda each: each[:2])
        for count in range(len(found), 0, -1):
            part = seconds / count
            if found[count - 1][0] <= part:
                _, _, task, training = found[0]
                return self._training_for(task, training.share_of(part))
        return None

    def _training_for(self, task: Task, seconds: float) -> Task:
        """The task with that share of the total; without one where `train_seconds` is shorter."""
        return replace(task, share=round(seconds, 1)) if seconds < self.suite.budget.train_seconds else task

    def _why_untrained(self, task: Task, spent: str) -> str:
        training = self.forecast.training(task)
        if training is None:
            return f"training {spent}"
        epochs = f"{training.epochs} epoch{'s' * (training.epochs != 1)} would take {span(training.seconds)}"
        rest, total = span(max(self.left, 0.0)), span(self.suite.budget.total_seconds or 0.0)
        return f"training left out: {epochs}, and {rest} of the total budget of {total} were left"


def rounds_of(numbers: Sequence[str]) -> str:
    """`round 3`, `rounds 2, 3`."""
    return f"round{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def slot(task: Task) -> TaskId:
    """The kind, round and combination, which identify a task."""
    return task.kind, task.round, task.combination


def is_baseline(task: Task) -> bool:
    """Whether its backend is the one that others are compared with."""
    return task.combination.backend.rpartition(":")[2] == BASELINE


def in_words(tasks: Iterable[Task]) -> str:
    """`2 verifications, 12 rounds, trainings of torch and native`."""
    by_kind: dict[str, list[Task]] = {}
    for task in tasks:
        by_kind.setdefault(task.kind, []).append(task)
    words = []
    for kind, one, many in (("verify", "verification", "verifications"), ("time", "round", "rounds")):
        if count := len(by_kind.get(kind, ())):
            words.append(f"{count} {one if count == 1 else many}")
    if trainings := by_kind.get("train"):
        backends = list(dict.fromkeys(task.combination.backend for task in trainings))
        architectures = list(dict.fromkeys(task.combination.architecture for task in trainings))
        names = architectures if len(architectures) > len(backends) else backends
        words.append(f"{len(trainings)} training{'s' * (len(trainings) != 1)} ({', '.join(names)})")
    return ", ".join(words)
