"""What each backend did in a run: one line per backend, in groups that may be read as one race."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convbench.results.samples import Process
from convbench.results.schema import MEASURED, Row, Status
from convbench.results.statistics import Interval, median, ratio_interval

BASELINE = "torch"


@dataclass(frozen=True)
class Race:
    """The conditions that the backends of one group share."""

    architecture: str
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
        return ", ".join(
            [f"{self.architecture} on {self.device}", self.dtype, f"batch {self.batch_size}", *rest]
        )


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


@dataclass(frozen=True)
class Line:
    """One backend of a group; what was not measured is None.

    `ratio` is the speed relative to the baseline's, above one where this backend is faster.
    """

    backend: str
    status: Status
    images_per_second: float | None
    step_ms: float | None
    step_ms_p10: float | None
    step_ms_p90: float | None
    processes: int
    ratio: float | None
    ratio_interval: Interval | None
    accuracy: Accuracy | None
    served_flops_fraction: float | None
    max_error: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A combination's process that measured nothing, and why."""

    label: str
    kind: str
    status: Status
    error: str


@dataclass(frozen=True)
class Group:
    """One race: its conditions, and a line per backend, the fastest first and the failed last."""

    race: Race
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """All that a run measured, ready to be shown."""

    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    rows: tuple[Row, ...]


def comparison_table(rows: Iterable[Row], samples: Mapping[Process, Sequence[float]] | None = None) -> Table:
    """Sum up a run's rows; `samples` (from `samples.step_times`) gives the ratios their intervals."""
    latest = latest_rows(rows)
    races: dict[Race, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in latest:
        races[race(row)][row.backend].append(row)
    groups = []
    for shared, backends in races.items():
        baseline = backends.get(BASELINE, [])
        lines = [line(backend, own, baseline, samples or {}) for backend, own in backends.items()]
        lines.sort(
            key=lambda each: (each.images_per_second is None, -(each.images_per_second or 0), each.backend)
        )
        groups.append(Group(shared, tuple(lines)))
    return Table(tuple(groups), tuple(failures(latest)), tuple(latest))


def latest_rows(rows: Iterable[Row]) -> list[Row]:
    """The last row of each process: a resumed run tries again what had failed, and appends."""
    last = {(row.run_id, row.combination, row.kind, row.round): row for row in rows}
    return list(last.values())


def race(row: Row) -> Race:
    """The group a row belongs to."""
    return Race(row.architecture, row.device, row.dtype, row.batch_size, row.memory_format, row.mode)


def line(
    backend: str, rows: Sequence[Row], baseline: Sequence[Row], samples: Mapping[Process, Sequence[float]]
) -> Line:
    """Sum up one backend's rows of one group."""
    timed, trained = measured(rows, "time"), measured(rows, "train")
    verified = [row for row in rows if row.kind == "verify"]
    step_ms = middle(row.step_ms_median for row in timed)
    baseline_ms = middle(row.step_ms_median for row in measured(baseline, "time"))
    interval = None
    if backend != BASELINE:
        # The speed's ratio is the inverse of the time's, so the sides change places.
        interval = ratio_interval(
            step_samples(timed, samples), step_samples(measured(baseline, "time"), samples)
        )
    return Line(
        backend=backend,
        status=worst(rows),
        images_per_second=middle(row.images_per_second for row in timed or trained),
        step_ms=step_ms,
        step_ms_p10=middle(row.step_ms_p10 for row in timed),
        step_ms_p90=middle(row.step_ms_p90 for row in timed),
        processes=len(timed),
        ratio=baseline_ms / step_ms if baseline_ms and step_ms else None,
        ratio_interval=interval,
        accuracy=accuracy(trained),
        served_flops_fraction=middle(row.served_flops_fraction for row in rows),
        max_error=max((row.max_error for row in verified if row.max_error is not None), default=None),
        notes=tuple(dict.fromkeys(row.notes for row in rows if row.notes)),
    )


def measured(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of a kind that measured something."""
    return [row for row in rows if row.kind == kind and row.status in MEASURED]


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is there."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


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
    """The accuracy that training reached, over its seeds."""
    trained = [(row, row.val_accuracy) for row in rows if row.val_accuracy is not None]
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
    )


def failures(rows: Iterable[Row]) -> list[Failure]:
    """Each thing that went wrong, once, however many rounds it struck."""
    found = (
        Failure(row.combination.label, row.kind, row.status, row.error or "no reason was recorded")
        for row in rows
        if row.status not in MEASURED
    )
    return list(dict.fromkeys(found))
