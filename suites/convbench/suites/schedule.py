"""The worker processes of a run in the order they are started, and which of them a resumed run can skip."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convbench.results.schema import MEASURED, Combination, Kind, Row
from convbench.suites.plan import Planned
from convbench.suites.suite import Suite


@dataclass(frozen=True)
class Task:
    """One worker process to be."""

    planned: Planned
    kind: Kind
    round: int
    order: int
    key: str
    side: str = ""  # of a run against another version

    @property
    def combination(self) -> Combination:
        return self.planned.combination

    @property
    def label(self) -> str:
        """For a person: `time round 2 lenet/im2col/...`."""
        part = f" round {self.round + 1}" if self.kind == "time" else ""
        side = f"{self.side}: " if self.side else ""
        return f"{side}{self.kind}{part} {self.combination.label}"


def schedule(
    suite: Suite, planned: Sequence[Planned], circumstances: Any, seed: str, *, time: bool, train: bool
) -> list[Task]:
    """First every verification; then the timing rounds, each over all combinations in an order of its own, so
    that drift of the machine hits all alike; then the trainings.

    Args:
        suite: gives the number of rounds, and what else a result depends on.
        planned: the combinations.
        circumstances: whatever of plugins and environment a result depends on, by combination.
        seed: of the random orders.
        time: with timing rounds.
        train: with trainings.
    """
    shuffler = random.Random(seed)
    slots: list[tuple[Planned, Kind, int]] = [(entry, "verify", 0) for entry in planned]
    if time:
        for number in range(suite.timing.rounds):
            slots += [(entry, "time", number) for entry in shuffler.sample(planned, len(planned))]
    if train:
        slots += [(entry, "train", 0) for entry in planned if entry.trains]
    return [
        Task(entry, kind, number, order, task_key(entry, kind, suite, circumstances(entry.combination)))
        for order, (entry, kind, number) in enumerate(slots)
    ]


def task_key(planned: Planned, kind: Kind, suite: Suite, circumstances: Any) -> str:
    """A hash of all that a result depends on: if it is the same, a resumed run need not measure again."""
    content = {
        "combination": asdict(planned.combination),
        "recipe": asdict(planned.recipe),
        "threads": suite.timing.threads,
        "how": asdict(suite.timing)
        if kind == "time"
        else suite.budget.train_seconds
        if kind == "train"
        else None,
        "circumstances": circumstances,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def left_alone(rows: Iterable[Row], tasks: Iterable[Task]) -> list[Row]:
    """The rows that this run is not about, such as trainings where it only verifies and times."""
    redone = {(task.kind, task.combination) for task in tasks}
    return [row for row in rows if (row.kind, row.combination) not in redone]


def still_valid(rows: Iterable[Row], tasks: Iterable[Task]) -> list[Row]:
    """The rows that answer one of the tasks: measured, under the same circumstances. A failure is tried anew."""
    wanted = {(task.kind, task.round, task.combination, task.key) for task in tasks}
    return [
        row
        for row in rows
        if row.status in MEASURED and (row.kind, row.round, row.combination, row.combination_key) in wanted
    ]
