"""Aggregates a run: a line for each backend (or architecture of a single backend), in groups of like conditions.

`standings` says which line of a group is the fastest, and which of the others are shown to be slower. Each is
compared with the first, and all of these comparisons of a run are judged together, as in `significance`. That the
first is chosen by the same data does no harm: comparisons with the best of the sample are as safe as those with a
line that was named beforehand (Hsu, "Constrained simultaneous confidence intervals for multiple comparisons
with the best", Annals of Statistics 12, 1984).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias

from convbench.results.analysis.coverage import Attribution, Rank, attribution, remarks
from convbench.results.analysis.flags import flag_counts, flagged
from convbench.results.analysis.machine_kinds import by_kind, differing, kinds_in, of_kind
from convbench.results.analysis.significance import (
    MIN_EFFECT,
    OnMachine,
    Scatter,
    judge,
    machines_of,
    scatter,
    time_difference,
    time_ratio,
)
from convbench.results.analysis.statistics import Interval, geometric_mean, median
from convbench.results.schema import MEASURED, Row, Status, Summary
from convbench.results.storage.csv_format import Process

Grouped: TypeAlias = "dict[Conditions, dict[str, list[Row]]]"

BASELINE = "torch"
UNKNOWN = "no reason was recorded"
CONSEQUENCE = "not measured, for its "  # the error of a row begins so where another row has the reason
CANNOT = (
    "unavailable",
    "unsupported",
)  # no fault: the backend cannot run on this machine, or cannot run this network


@dataclass(frozen=True)
class Conditions:
    """The conditions that the lines of one group share.

    `shared` is the architecture that backends compete on, or the backend that architectures are compared on.
    `machine_kind` is the model of the processor or accelerator, where speeds differ between those of a cluster.
    """

    shared: str
    device: str
    dtype: str
    batch_size: int
    memory_format: str
    mode: str
    world_size: int = 1
    machine_kind: str = ""

    @property
    def title(self) -> str:
        """In words, such as `lenet on cpu, float32, batch 128`."""
        usual = ("contiguous", "eager")
        rest = [word for word in (self.memory_format, self.mode) if word not in usual]
        rest += [f"{self.world_size} processes"] * (self.world_size > 1)
        rest += [f"on {self.machine_kind}"] * bool(self.machine_kind)
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


@dataclass(frozen=True, kw_only=True)
class Line(Summary):
    """One backend or architecture of a group, by its `name`, and the rows behind it.

    `images_per_second` and `speedup` are derived from `step_ms`, so that all of them give one order, that of the
    verdicts. Where nothing was timed, `images_per_second` is the geometric mean over trainings.
    """

    name: str
    rows: tuple[Row, ...]
    accuracy: Accuracy | None
    remarks: tuple[str, ...]
    attribution: Attribution = field(default_factory=Attribution)

    @property
    def timed(self) -> list[Row]:
        """The rows of the processes that timed something."""
        return measured(self.rows, "time")

    @property
    def speedup_interval(self) -> Interval | None:
        """The speed relative to the baseline's with its interval, where there is one."""
        if self.speedup is None or self.speedup_low is None or self.speedup_high is None:
            return None
        return Interval(self.speedup, self.speedup_low, self.speedup_high)


@dataclass(frozen=True)
class Failure:
    """A process that measured nothing, and why; `alike` counts the other combinations that failed likewise."""

    label: str
    kind: str
    status: Status
    error: str
    alike: int = 0


@dataclass(frozen=True)
class NotRun:
    """Backends, or architectures, that cannot run in `groups` of the run's `of` groups, for one reason."""

    names: tuple[str, ...]
    reason: str
    groups: int
    of: int

    def __str__(self) -> str:
        where = f" in {self.groups} of {self.of} tables" if self.groups < self.of else ""
        return f"{', '.join(self.names)}{where} ({self.reason})"


@dataclass(frozen=True)
class Group:
    """A comparison group: its conditions, whether its lines are backends or architectures, and the lines.

    The fastest line comes first; lines without a rank follow, then lines without a speed.
    """

    conditions: Conditions
    subject: str
    lines: tuple[Line, ...]

    @cached_property
    def scatter(self) -> Scatter:
        """How far apart the processes of each line are."""
        return scatter_of(line.rows for line in self.lines)


@dataclass(frozen=True)
class Table:
    """All that a run measured; what cannot run has no line in any group."""

    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    rows: tuple[Row, ...]
    not_run: tuple[NotRun, ...] = ()

    @property
    def lines(self) -> list[Line]:
        """The lines of all groups."""
        return [line for group in self.groups for line in group.lines]


def comparison_table(rows: Iterable[Row], *, rank: Rank = "served") -> Table:
    """Sum up a run's rows.

    Backends that left convolutions to torch come after the others, unless `rank` is "all".
    """
    latest = latest_rows(rows)
    alone = len({row.backend for row in latest}) == 1 and len({row.architecture for row in latest}) > 1
    subject, shared_by = ("architecture", "backend") if alone else ("backend", "architecture")
    found: Grouped = defaultdict(lambda: defaultdict(list))
    for row in latest:
        found[conditions_of(row, getattr(row, shared_by))][getattr(row, subject)].append(row)
    if not alone:
        found = divided_by_kind(found)
    groups, failed, idle = [], [], []
    for conditions, competitors in found.items():
        idle += [(name, own) for name, own in competitors.items() if cannot_run(own)]
        competitors = {name: own for name, own in competitors.items() if not cannot_run(own)}
        failed += [row for own in competitors.values() for row in own]
        baseline = [] if alone else competitors.get(BASELINE, [])
        spread = scatter_of(competitors.values())
        lines = [
            replace(
                summed_up(name, own, baseline, rank, spread), machine_kind=conditions.machine_kind or None
            )
            for name, own in competitors.items()
        ]
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
    return Table(tuple(groups), tuple(failures(failed)), tuple(latest), tuple(not_run(idle, len(found))))


def divided_by_kind(groups: Grouped) -> Grouped:
    """The groups, each in which speeds differ between kinds of machines divided into one for each kind.

    The times of a backend are compared with the baseline's of the same block, or the first backend's.
    """
    lines = []
    for conditions, competitors in groups.items():
        kinds = kinds_in(row for own in competitors.values() for row in own if row.block)
        if len(kinds) < 2:
            continue
        sides = {
            name: [step_ms_by_process(of_kind(own, kind)) for kind in kinds]
            for name, own in competitors.items()
            if measured(own, "time")
        }
        first = sides.pop(BASELINE if BASELINE in sides else next(iter(sides), ""), [])
        lines += [
            by_kind(conditions, dict(zip(kinds, zip(first, times, strict=True), strict=True)))
            for times in sides.values()
        ]
    differ = {
        line.group
        for line, differs in zip(lines, differing(lines, math.log1p(MIN_EFFECT)), strict=True)
        if differs
    }
    found: Grouped = {}
    for conditions, competitors in groups.items():
        if conditions not in differ:
            found[conditions] = competitors
            continue
        for kind in kinds_in(row for own in competitors.values() for row in own):
            parts = {name: of_kind(own, kind) for name, own in competitors.items()}
            found[replace(conditions, machine_kind=kind)] = {name: own for name, own in parts.items() if own}
    return found


def cannot_run(rows: Sequence[Row]) -> bool:
    """Whether a backend measured nothing in a group because it cannot run there."""
    unmeasured = [row for row in rows if row.status not in MEASURED]
    return (
        bool(unmeasured)
        and all(row.status in CANNOT for row in unmeasured)
        and all(row.kind == "verify" for row in rows if row.status in MEASURED)
    )


def not_run(idle: Iterable[tuple[str, Sequence[Row]]], groups: int) -> list[NotRun]:
    """Each reason once, with the names of what it keeps from running."""
    reasons: dict[tuple[str, str], int] = Counter()
    for name, rows in idle:
        errors = [row.error for row in rows if row.error and not row.error.startswith(CONSEQUENCE)]
        reasons[errors[0] if errors else UNKNOWN, name] += 1
    together: dict[tuple[str, int], list[str]] = defaultdict(list)
    for (reason, name), count in reasons.items():
        together[reason, count].append(name)
    return [
        NotRun(tuple(sorted(names)), reason, count, groups) for (reason, count), names in together.items()
    ]


def latest_rows(rows: Iterable[Row]) -> list[Row]:
    """The last row of each process: a resumed run tries again what had failed, and appends."""
    last = {(row.run_id, row.combination, row.kind, row.round): row for row in rows}
    return list(last.values())


def conditions_of(row: Row, shared: str) -> Conditions:
    """The conditions of the group that a row belongs to."""
    return Conditions(
        shared, row.device, row.dtype, row.batch_size, row.memory_format, row.mode, row.world_size
    )


def summed_up(
    name: str, rows: Sequence[Row], baseline: Sequence[Row], rank: Rank, spread: Scatter | None = None
) -> Line:
    """Sum up the rows of one line of a group."""
    timed, trained, first = measured(rows, "time"), measured(rows, "train"), rows[0]
    step_ms = center(row.step_ms_median for row in timed)
    baseline_ms = center(row.step_ms_median for row in measured(baseline, "time"))
    covered = attribution(rows)
    ranked = covered.whole or rank == "all"
    # the speed's ratio is the inverse of the time's, so the sides change places
    sides = step_ms_by_process(rows), step_ms_by_process(baseline)
    interval = None if name == BASELINE else time_ratio(*sides, spread)
    speedup = baseline_ms / step_ms if baseline_ms and step_ms else None
    if machines_of(*sides) > 1 and name != BASELINE:  # the means are over unlike machines
        gap = time_difference(*sides, spread)
        speedup = math.exp(gap.estimate) if gap is not None else None
    reached = accuracy(trained)
    score = None if reached is None or reached.is_loss else reached
    remarks_of = dict.fromkeys(
        [*remarks(covered, ranked)] * bool(timed or trained)
        + [row.notes for row in rows if row.notes]
        + flagged(timed)
    )
    return Line(
        name=name,
        rows=tuple(rows),
        accuracy=reached,
        remarks=tuple(remarks_of),
        attribution=covered,
        architecture=first.architecture,
        backend=first.backend,
        device=first.device,
        dtype=first.dtype,
        batch_size=first.batch_size,
        memory_format=first.memory_format,
        mode=first.mode,
        world_size=first.world_size,
        status=worst(rows),
        flags=flag_counts(rows) or None,
        parameters=next((row.parameters for row in rows if row.parameters is not None), None),
        images_per_second=(
            1000 * first.batch_size / step_ms
            if step_ms
            else center(row.images_per_second for row in timed or trained)
        ),
        step_ms=step_ms,
        step_ms_p10=center(row.step_ms_p10 for row in timed),
        step_ms_p90=center(row.step_ms_p90 for row in timed),
        processes=len(timed) or None,
        speedup=speedup,
        speedup_low=interval.low if interval else None,
        speedup_high=interval.high if interval else None,
        val_accuracy=score.mean if score else None,
        val_accuracy_low=score.low if score else None,
        val_accuracy_high=score.high if score else None,
        val_loss=reached.mean if reached and not score else None,
        seeds=reached.seeds if reached else None,
        epochs=reached.epochs if reached else None,
        train_seconds=reached.seconds if reached else None,
        shifted_val_accuracy=middle(row.shifted_val_accuracy for row in trained),
        gflops_per_second=center(row.gflops_per_second for row in timed),
        roofline_fraction=center(row.roofline_fraction for row in timed),
        coverage=covered.flops,
        ranked=int(ranked),
        max_error=largest(row.max_error for row in rows if row.kind == "verify"),
        derived_backward=", ".join(covered.derived) or None,
        peak_memory_mb=largest(row.peak_memory_mb for row in timed or rows),
        setup_seconds=middle(row.setup_seconds for row in timed),
        compile_seconds=middle(row.compile_seconds for row in timed),
        arithmetic_intensity=middle(row.arithmetic_intensity for row in timed),
        notes="; ".join(remarks_of) or None,
    )


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of the values that are not None."""
    return max((value for value in values if value is not None), default=None)


def measured(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of a kind that measured something."""
    return [row for row in rows if row.kind == kind and row.is_measured]


def middle(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def center(values: Iterable[float | None]) -> float | None:
    """The geometric mean of the values above zero."""
    there = [value for value in values if value is not None and 0 < value < math.inf]
    return geometric_mean(there) if there else None


def step_samples(rows: Iterable[Row], samples: Mapping[Process, Sequence[float]]) -> list[Sequence[float]]:
    """The step times of each row's process, where they were kept."""
    kept = (samples.get((row.combination, row.round)) for row in rows)
    return [steps for steps in kept if steps]


def worst(rows: Iterable[Row]) -> Status:
    """The status of several rows: a failure, else a cut by the budget, else ok."""
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
    """Each cause of a failure once, over all rounds and seeds; no rows that failed because another row did."""
    alike: dict[tuple[str, str, str, Status, str], list[str]] = defaultdict(list)
    for row in rows:
        error = row.error or UNKNOWN
        if row.status not in MEASURED and not error.startswith(CONSEQUENCE):
            alike[row.architecture, row.backend, row.kind, row.status, error].append(row.combination.label)
    return [
        Failure(labels[0], kind, status, error, len(set(labels)) - 1)
        for (_, _, kind, status, error), labels in alike.items()
    ]


Verdict = Literal["behind", "same", "unclear"]


@dataclass(frozen=True)
class Standing:
    """A group's timed lines, the fastest first, and whether the others are shown to be slower than the first.

    `unranked` lines were timed as well, and left convolutions to torch.
    """

    group: Group
    timed: tuple[Line, ...]
    verdicts: Mapping[str, Verdict]
    unranked: tuple[Line, ...] = ()

    @property
    def tied(self) -> list[Line]:
        """Those that may be as fast as the first."""
        return [line for line in self.timed[1:] if self.verdicts[line.name] != "behind"]


def standings(table: Table) -> list[Standing]:
    """The fastest line of each group, and whether the others are shown to be slower."""
    timed = [timed_lines(group) for group in table.groups]
    pairs = [(at, lines[0], line) for at, lines in enumerate(timed) for line in lines[1:]]
    gaps = [
        time_difference(
            step_ms_by_process(first.rows), step_ms_by_process(line.rows), table.groups[at].scatter
        )
        for at, first, line in pairs
    ]
    verdicts_of = iter(judge([gap for gap in gaps if gap is not None], math.log1p(MIN_EFFECT)))
    words: dict[str, Verdict] = {"more": "behind", "same": "same", "less": "unclear", "unclear": "unclear"}
    found: list[dict[str, Verdict]] = [{} for _ in timed]
    for (at, _, line), gap in zip(pairs, gaps, strict=True):
        found[at][line.name] = "unclear" if gap is None else words[next(verdicts_of).verdict]
    return [
        Standing(group, tuple(lines), verdicts, tuple(timed_lines(group, ranked=False)))
        for group, lines, verdicts in zip(table.groups, timed, found, strict=True)
    ]


def timed_lines(group: Group, *, ranked: bool = True) -> list[Line]:
    """The lines that were timed and are ranked, or those that are not; the fastest first, as in the table."""
    lines = [line for line in group.lines if line.ranked == ranked]
    return [line for line in lines if line.processes and line.step_ms]


def step_ms_by_process(rows: Iterable[Row]) -> dict[Hashable, float]:
    """The median step time of each process that was timed, by run, seed and round, and by machine of a cluster."""
    timed = ((row, row.step_ms_median or 0.0) for row in measured(rows, "time"))
    return {process_of(row): value for row, value in timed if 0 < value < math.inf}


def process_of(row: Row) -> Hashable:
    """What names the process of a timing row; those of one block have the same name."""
    process = row.run_id, row.seed, row.round
    return OnMachine(process, row.node or row.machine_id) if row.block else process


def scatter_of(lines: Iterable[Iterable[Row]]) -> Scatter:
    """How far apart the processes of each line are, from its rows."""
    return scatter(step_ms_by_process(rows).values() for rows in lines)


def nothing_to_serve(group: Group) -> bool:
    """Whether verification found no op in the network that a backend could serve."""
    if group.subject != "backend":
        return False
    rows = [row for line in group.lines for row in line.rows]
    verified = [row for row in rows if row.kind == "verify" and row.status == "ok"]
    return bool(verified) and not any(row.served or row.served_calls for row in verified)
