"""What a run came to: a line per backend, or per architecture of a single backend, in groups to read as a race."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from convbench.results.analysis.attribution import Attribution, Rank, attribution, remarks
from convbench.results.analysis.statistics import Interval, geometric_mean, median, ratio_interval
from convbench.results.schema import MEASURED, Row, Status
from convbench.results.storage.samples import Process

BASELINE = "torch"
UNKNOWN = "no reason was recorded"
CONSEQUENCE = "not measured, for its "  # so begins the error of a row that another row already explains
FLAGS = {
    "busy": "while other programs were running",
    "throttled": "while the device or the process was slowed down",
    "drifting": "with steps that became slower or faster",
}
CANNOT = ("unavailable", "unsupported")  # nothing is wrong: the backend cannot run this, or cannot run here


@dataclass(frozen=True)
class Race:
    """The conditions that the lines of one group share.

    `shared` is the architecture that backends compete on, or the backend that architectures are compared on.
    """

    shared: str
    device: str
    dtype: str
    batch_size: int
    memory_format: str
    mode: str

    @property
    def title(self) -> str:
        """In words, such as `lenet on cpu, float32, batch 128`."""
        usual = ("contiguous", "eager")
        rest = [word for word in (self.memory_format, self.mode) if word not in usual]
        return ", ".join([f"{self.shared} on {self.device}", self.dtype, f"batch {self.batch_size}", *rest])


@dataclass(frozen=True)
class Accuracy:
    """Where training ended: the mean over seeds, and what it took."""

    mean: float
    low: float
    high: float
    seeds: int
    epochs: float | None
    seconds: float | None
    budgeted: bool
    is_loss: bool = False


@dataclass(frozen=True)
class Line:
    """One backend or architecture of a group; what was not measured is None.

    `step_ms` is the geometric mean over processes of their median steps, as those that eight of ten lie between
    are of theirs; `images_per_second` and `ratio` follow
    from it, so that all of them put competitors in one order, which is that of the verdicts. Of what was trained
    and not timed, `images_per_second` is the geometric mean over trainings.
    `ratio` is the speed relative to the baseline's, above one where this backend is faster. `ranked` is False
    where it left convolutions to torch: its speed is shown, and never wins.
    """

    name: str
    status: Status
    parameters: int | None
    images_per_second: float | None
    step_ms: float | None
    step_ms_p10: float | None
    step_ms_p90: float | None
    processes: int
    ratio: float | None
    ratio_interval: Interval | None
    accuracy: Accuracy | None
    shifted_accuracy: float | None
    served_flops_fraction: float | None
    max_error: float | None
    notes: tuple[str, ...]
    attribution: Attribution = field(default_factory=Attribution)
    ranked: bool = True


@dataclass(frozen=True)
class Failure:
    """A combination's process that measured nothing, and why; `alike` counts the others of the same fate."""

    label: str
    kind: str
    status: Status
    error: str
    alike: int = 0


@dataclass(frozen=True)
class NotRun:
    """Backends, or architectures, that cannot run in `races` of the run's `of` groups, for one reason."""

    names: tuple[str, ...]
    reason: str
    races: int
    of: int

    def __str__(self) -> str:
        where = f" in {self.races} of {self.of} tables" if self.races < self.of else ""
        return f"{', '.join(self.names)}{where} ({self.reason})"


@dataclass(frozen=True)
class Group:
    """One race: its conditions, what its lines are, and those.

    The fastest comes first, then those that are not ranked, then those without a speed.
    """

    race: Race
    subject: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """All that a run measured, ready to be shown; what cannot run has no line in any group."""

    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    rows: tuple[Row, ...]
    not_run: tuple[NotRun, ...] = ()


def comparison_table(
    rows: Iterable[Row], samples: Mapping[Process, Sequence[float]] | None = None, *, rank: Rank = "served"
) -> Table:
    """Sum up a run's rows; `samples` (from `samples.step_times`) gives the ratios their intervals.

    Competitors that left convolutions to torch come after the others, unless `rank` is "all".
    """
    latest = latest_rows(rows)
    alone = len({row.backend for row in latest}) == 1 and len({row.architecture for row in latest}) > 1
    subject, shared_by = ("architecture", "backend") if alone else ("backend", "architecture")
    races: dict[Race, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in latest:
        races[race(row, getattr(row, shared_by))][getattr(row, subject)].append(row)
    groups, failed, idle = [], [], []
    for conditions, competitors in races.items():
        idle += [(name, own) for name, own in competitors.items() if cannot_run(own)]
        competitors = {name: own for name, own in competitors.items() if not cannot_run(own)}
        failed += [row for own in competitors.values() for row in own]
        baseline = [] if alone else competitors.get(BASELINE, [])
        lines = [line(name, own, baseline, samples or {}, rank) for name, own in competitors.items()]
        lines.sort(
            key=lambda each: (
                each.images_per_second is None,
                not each.ranked,
                -(each.images_per_second or 0),
                each.name,
            )
        )
        if lines:
            groups.append(Group(conditions, subject, tuple(lines)))
    return Table(tuple(groups), tuple(failures(failed)), tuple(latest), tuple(not_run(idle, len(races))))


def cannot_run(rows: Sequence[Row]) -> bool:
    """Whether a competitor measured nothing in a race because it cannot run there."""
    unmeasured = [row for row in rows if row.status not in MEASURED]
    return (
        bool(unmeasured)
        and all(row.status in CANNOT for row in unmeasured)
        and all(row.kind == "verify" for row in rows if row.status in MEASURED)
    )


def not_run(idle: Iterable[tuple[str, Sequence[Row]]], races: int) -> list[NotRun]:
    """Each reason once, with everything that it keeps from running."""
    reasons: dict[tuple[str, str], int] = Counter()
    for name, rows in idle:
        errors = [row.error for row in rows if row.error and not row.error.startswith(CONSEQUENCE)]
        reasons[errors[0] if errors else UNKNOWN, name] += 1
    together: dict[tuple[str, int], list[str]] = defaultdict(list)
    for (reason, name), count in reasons.items():
        together[reason, count].append(name)
    return [NotRun(tuple(sorted(names)), reason, count, races) for (reason, count), names in together.items()]


def latest_rows(rows: Iterable[Row]) -> list[Row]:
    """The last row of each process: a resumed run tries again what had failed, and appends."""
    last = {(row.run_id, row.combination, row.kind, row.round): row for row in rows}
    return list(last.values())


def race(row: Row, shared: str) -> Race:
    """The group a row belongs to."""
    return Race(shared, row.device, row.dtype, row.batch_size, row.memory_format, row.mode)


def line(
    name: str,
    rows: Sequence[Row],
    baseline: Sequence[Row],
    samples: Mapping[Process, Sequence[float]],
    rank: Rank,
) -> Line:
    """Sum up one competitor's rows of one group."""
    timed, trained = measured(rows, "time"), measured(rows, "train")
    verified = [row for row in rows if row.kind == "verify"]
    step_ms = center(row.step_ms_median for row in timed)
    baseline_ms = center(row.step_ms_median for row in measured(baseline, "time"))
    whose = attribution(rows)
    ranked = whose.whole or rank == "all"
    interval = None
    if name != BASELINE:
        # The speed's ratio is the inverse of the time's, so the sides change places.
        interval = ratio_interval(
            step_samples(timed, samples), step_samples(measured(baseline, "time"), samples)
        )
    return Line(
        name=name,
        status=worst(rows),
        parameters=next((row.parameters for row in rows if row.parameters is not None), None),
        images_per_second=(
            1000 * timed[0].batch_size / step_ms  # of one group, all have one batch size
            if step_ms
            else center(row.images_per_second for row in timed or trained)
        ),
        step_ms=step_ms,
        step_ms_p10=center(row.step_ms_p10 for row in timed),
        step_ms_p90=center(row.step_ms_p90 for row in timed),
        processes=len(timed),
        ratio=baseline_ms / step_ms if baseline_ms and step_ms else None,
        ratio_interval=interval,
        accuracy=accuracy(trained),
        shifted_accuracy=middle(row.shifted_val_accuracy for row in trained),
        served_flops_fraction=whose.flops,
        max_error=max((row.max_error for row in verified if row.max_error is not None), default=None),
        notes=tuple(
            dict.fromkeys(
                [*remarks(whose, ranked)] * bool(timed or trained)
                + [r.notes for r in rows if r.notes]
                + flagged(timed)
            )
        ),
        attribution=whose,
        ranked=ranked,
    )


def flagged(timed: Sequence[Row]) -> list[str]:
    """How many of the timing processes carry each flag, in a sentence."""
    counts = {flag: sum(flag in (row.flags or "").split() for row in timed) for flag in FLAGS}
    return [
        f"{count} of {len(timed)} processes timed {FLAGS[flag]} ({flag})"
        for flag, count in counts.items()
        if count
    ]


def measured(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of a kind that measured something."""
    return [row for row in rows if row.kind == kind and row.is_measured]


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is there."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def center(values: Iterable[float | None]) -> float | None:
    """The geometric mean of what is there, which a time or a speed is only above zero."""
    there = [value for value in values if value is not None and 0 < value < math.inf]
    return geometric_mean(there) if there else None


def step_samples(rows: Iterable[Row], samples: Mapping[Process, Sequence[float]]) -> list[Sequence[float]]:
    """The step times of each row's process, where they were kept."""
    kept = (samples.get((row.combination, row.round)) for row in rows)
    return [steps for steps in kept if steps]


def worst(rows: Iterable[Row]) -> Status:
    """The status that says most: a failure, else a cut by the budget, else ok."""
    found = {row.status for row in rows}
    failed = [row.status for row in rows if row.status not in MEASURED]
    return failed[0] if failed else "budget" if "budget" in found else "ok"


def accuracy(rows: Sequence[Row]) -> Accuracy | None:
    """The accuracy that training reached, over its seeds; the loss where there is no accuracy."""
    trained = [(row, row.val_accuracy) for row in rows if row.val_accuracy is not None]
    is_loss = not trained
    trained = trained or [(row, row.val_loss) for row in rows if row.val_loss is not None]
    if not trained:
        return None
    values = [value for _, value in trained]
    return Accuracy(
        mean=sum(values) / len(values),
        low=min(values),
        high=max(values),
        seeds=len({row.seed for row, _ in trained}),
        epochs=middle(row.epochs for row, _ in trained),
        seconds=middle(row.train_seconds for row, _ in trained),
        budgeted=any(row.status == "budget" for row, _ in trained),
        is_loss=is_loss,
    )


def failures(rows: Iterable[Row]) -> list[Failure]:
    """Each thing that went wrong, once, however many rounds and seeds it struck; not what followed from it."""
    alike: dict[tuple[str, str, str, Status, str], list[str]] = defaultdict(list)
    for row in rows:
        error = row.error or UNKNOWN
        if row.status not in MEASURED and not error.startswith(CONSEQUENCE):
            alike[row.architecture, row.backend, row.kind, row.status, error].append(row.combination.label)
    return [
        Failure(labels[0], kind, status, error, len(set(labels)) - 1)
        for (_, _, kind, status, error), labels in alike.items()
    ]
