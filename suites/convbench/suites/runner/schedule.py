"""The worker processes of a run in the order they are started, and which of them a resumed run can skip."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convbench.results.schema import MEASURED, Combination, Kind, Row
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Suite
from convbench.suites.measure.stopping import rounds_suffice


@dataclass(frozen=True)
class Task:
    """A worker process to be started.

    `share` is how many seconds of steps the run's total budget gives it, None without one; a training that such a
    share cut short has the key `cut_key`, which another total budget does not have.
    """

    planned: Planned
    kind: Kind
    round: int
    order: int
    key: str
    optional: bool = False  # a round that is only run if those before it were not enough
    side: str = ""  # of a run against another version
    share: float | None = None
    cut_key: str = ""

    @property
    def combination(self) -> Combination:
        return self.planned.combination

    @property
    def label(self) -> str:
        """For a person: `time round 2 lenet/im2col/...`."""
        return self.named(self.combination.label)

    def named(self, combination: str) -> str:
        """The label with the combination in these words."""
        part = f" round {self.round + 1}" if self.kind == "time" else ""
        side = f"{self.side}: " if self.side else ""
        return f"{side}{self.kind}{part} {combination}"


def schedule(
    suite: Suite,
    planned: Sequence[Planned],
    circumstances: Any,
    seed: str,
    *,
    time: bool,
    train: bool,
) -> list[Task]:
    """First every verification; then the timing rounds, each over all combinations in an order of its own, so
    that drift of the machine hits all alike; then the trainings. Rounds beyond the suite's least number are
    optional.

    Args:
        circumstances: whatever of plugins and environment a result depends on, by combination.
        seed: of the random orders.
    """
    shuffler = random.Random(os.fsencode(seed))  # a directory may have a name that is no text
    slots: list[tuple[Planned, Kind, int]] = [(entry, "verify", 0) for entry in planned]
    if time:
        for number in range(max(suite.timing.rounds, suite.timing.max_rounds or 0)):
            slots += [(entry, "time", number) for entry in shuffler.sample(planned, len(planned))]
    if train:
        slots += [(entry, "train", 0) for entry in planned if entry.trains]
    tasks = []
    for order, (entry, kind, number) in enumerate(slots):
        key = task_key(entry, kind, suite, circumstances(entry.combination))
        cut = hashlib.sha256(f"{key} cut by {suite.budget.total_seconds}".encode()).hexdigest()[:16]
        optional = number >= suite.timing.rounds
        tasks.append(Task(entry, kind, number, order, key, optional, cut_key=cut))
    return tasks


def task_key(planned: Planned, kind: Kind, suite: Suite, circumstances: Any) -> str:
    """A hash of all that a result depends on: if it is the same, a resumed run need not measure again."""
    timing = suite.timing
    content = {
        "combination": planned.combination.identity,
        "recipe": asdict(planned.recipe),
        "threads": timing.threads,
        "cudnn": timing.cudnn,
        "how": _how(kind, suite),
        **({"fuse": True} if suite.fuse else {}),
        "circumstances": circumstances,
    }
    return "k" + hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _how(kind: Kind, suite: Suite) -> Any:
    if kind == "time":  # how many rounds there are changes none of them
        return {name: value for name, value in asdict(suite.timing).items() if not name.endswith("rounds")}
    return suite.budget.train_seconds if kind == "train" else None


def enough(rows: Iterable[Row], precision: float) -> bool:
    """Whether the timing rounds of a combination need no further one: their interval is tight, or one failed."""
    timed = list(rows)
    failed = any(row.status not in MEASURED for row in timed)
    return failed or rounds_suffice([row.step_ms_median for row in timed if row.step_ms_median], precision)


def left_alone(rows: Iterable[Row], tasks: Iterable[Task]) -> list[Row]:
    """The rows that no task of this run replaces, such as trainings where it only verifies and times."""
    redone = {(task.kind, task.combination) for task in tasks}
    return [row for row in rows if (row.kind, row.combination) not in redone]


def planned_processes(tasks: Iterable[Task], others: Iterable[Row]) -> dict[str, int]:
    """How many rows of each kind a run has once it is complete; optional rounds come on top of them."""
    return dict(Counter([*(task.kind for task in tasks if not task.optional), *(row.kind for row in others)]))


def still_valid(rows: Iterable[Row], tasks: Iterable[Task]) -> list[Row]:
    """The rows that make one of the tasks unnecessary: measured, under the same circumstances.

    A failure is tried again, and so is what a total budget left out, or cut shorter than this one would.
    """
    wanted = {
        (task.kind, task.round, task.combination, key) for task in tasks for key in (task.key, task.cut_key)
    }
    return [
        row
        for row in rows
        if row.is_measured and (row.kind, row.round, row.combination, row.combination_key) in wanted
    ]
