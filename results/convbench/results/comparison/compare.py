"""Compares the results of runs with those of a base, combination by combination."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from convbench.registry.errors import NothingRan, UsageError
from convbench.registry.notebook import Displayed, html
from convbench.results.analysis.coverage import served_change, unlike_shares
from convbench.results.analysis.machine_kinds import by_kind, differing, machines_in_words
from convbench.results.analysis.significance import (
    FLOOR_POINTS,
    MIN_EFFECT,
    MIN_POINTS,
    OF_TIMES,
    Difference,
    Judged,
    Times,
    Verdict,
    difference,
    judge,
    log_difference,
    processes_to_decide,
    scatter,
    time_difference,
    would_decide,
)
from convbench.results.analysis.statistics import exponential, geometric_mean
from convbench.results.comparison.gate import gate
from convbench.results.comparison.history import Trend, trends
from convbench.results.comparison.pairing import (
    Left,
    Match,
    flags_of_both,
    joined,
    match,
    name,
    reasons,
    time_apart,
)
from convbench.results.comparison.sides import read_side
from convbench.results.schema import Combination

if TYPE_CHECKING:
    import pandas as pd

    Source: TypeAlias = Path | str | pd.DataFrame

SAME_EPOCHS = 0.1  # trainings whose lengths differ by a larger share have no accuracies to compare


@dataclass(frozen=True)
class TimePair:
    """The step time of one combination on both sides, geometric means over processes.

    `ratio` is new over base, above one is slower, with its 95 % interval from `low` to `high`; `upper` is the end
    of the one-sided 95 % interval, which a gate compares with its limit; `detectable` is the smallest ratio that
    processes so many and so spread could have shown. `note` has warnings about the pair; `paired`
    marks that each process was compared with its counterpart of the same round of the same run. `base_served` and
    `new_served` are the shares of the FLOPs that the backend computed itself, None where a side does not tell.
    `base_flags` and `new_flags` count the processes that have each flag. `standard_error` is that of the
    ratio's logarithm; `processes_needed` estimates how many processes a side would decide an unclear pair, None
    where it is decided or would take more than 1,000. `machine_kind` is the model of the processor or accelerator
    that the pair is of, where the ratios differ between those of a cluster; empty where it is of all.
    """

    combination: Combination
    file: str
    verdict: Verdict
    ratio: float
    low: float
    high: float
    p_value: float
    detectable: float
    upper: float
    base_ms: float
    new_ms: float
    base_processes: int
    new_processes: int
    note: str = ""
    paired: bool = False
    base_served: float | None = None
    new_served: float | None = None
    base_flags: Mapping[str, int] = field(default_factory=dict)
    new_flags: Mapping[str, int] = field(default_factory=dict)
    standard_error: float = 0.0
    processes_needed: int | None = None
    machine_kind: str = ""

    @property
    def name(self) -> str:
        """The combination's, and the kind of machine where the pair is of one."""
        return name(self.combination) + f" on {self.machine_kind}" * bool(self.machine_kind)

    @property
    def served_less(self) -> bool:
        """Whether the backend left to torch some of what it computed in the base."""
        return served_change(self.base_served, self.new_served) < 0


@dataclass(frozen=True)
class AccuracyPair:
    """The validation accuracy of one combination on both sides, means over the seeds that both trained.

    `change` is new minus base; what rests on a spread over seeds is None where a side has one seed.
    `combination` carries the first seed.
    """

    combination: Combination
    file: str
    verdict: Verdict
    change: float
    low: float | None
    high: float | None
    p_value: float | None
    detectable: float | None
    base_accuracy: float
    new_accuracy: float
    base_seeds: int
    new_seeds: int
    note: str = ""


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """What `compare` found: `files` are the names of the base and of what was compared with it.

    `remarks` are warnings about all pairs of two files, such as runs that were not interleaved. `advice` says
    how many processes would decide the pairs of times that are unclear; it is empty where none is.
    """

    files: tuple[str, ...]
    times: tuple[TimePair, ...]
    accuracies: tuple[AccuracyPair, ...]
    left_out: tuple[Left, ...]
    trends: tuple[Trend, ...]
    min_effect: float
    remarks: tuple[str, ...] = ()
    advice: str = ""

    def gate(self, slower: float, *, allow_unclear: bool = False) -> str:
        """Refuse a slow-down by more than `slower` (0.05 is 5 %); return what passing is worth.

        A pair passes where the upper end of its one-sided 95 % interval lies below the limit. It fails where it is
        `slower`, and its 95 % interval lies beyond the limit. Otherwise it is undecided, and so is the gate;
        `allow_unclear` lets such pairs pass and counts them, unless all are undecided. Refused too is a
        combination that the base measured, and that a new file planned and could not measure, and one whose
        backend left more of the work to torch: that time is not the backend's.

        Raises:
            UsageError: this comparison called nothing different that differs by as little as `slower`.
            GateFailed: a pair is slower by more than that, a combination was lost, or a backend did less itself.
            NothingRan: no step time was compared, or too many pairs are undecided.
        """
        return gate(self, slower, allow_unclear=allow_unclear)

    def table(self) -> pd.DataFrame:
        """A row for each pair of times and of accuracies; `measure` says which of them it is."""
        import pandas as pd

        from convbench.results.comparison.formats import PAIR_TABLE, records

        pairs = (values for values in records(self) if values["measure"])
        return pd.DataFrame(pairs, columns=PAIR_TABLE)

    def plot(self) -> Any:
        """The charts of the comparison."""
        from convbench.results.charts import plot_comparison

        return plot_comparison(self)

    def __repr__(self) -> str:
        verdicts = Counter([pair.verdict for pair in self.times] + [pair.verdict for pair in self.accuracies])
        counts = [f"{number} {verdict}" for verdict, number in verdicts.items()]
        counts += [f"{len(self.left_out)} not compared"] * bool(self.left_out)
        return f"{' and '.join(self.files)}: {', '.join(counts)}"

    def _repr_html_(self) -> str:
        import pandas as pd

        from convbench.results.comparison.formats import sections

        return html(repr(self), *(pd.DataFrame(each.rows, columns=each.headings) for each in sections(self)))


def compare(
    base: Source, new: Source, *more: Source, force: bool = False, min_effect: float = MIN_EFFECT
) -> Comparison:
    """Compare results with those of a base.

    Each is a results.csv, a run directory, a table of `read_results`, a JSON file of pytest-benchmark, or a
    directory of such files, one per process. Pairs of unlike machine, torch, threads, data set or recipe are
    left out unless `force`. A ratio of times nearer to one than `min_effect` is never called a difference.

    Raises:
        UsageError: a file cannot be read, or `min_effect` is not a share.
        NothingRan: nothing could be compared.
    """
    if not 0 < min_effect < 1:
        raise UsageError(f"min_effect is a share between 0 and 1, as 0.03 is 3 %, not {min_effect:g}")
    sources = (base, new, *more)
    files = labels(sources)
    first, *others = (read_side(source, name) for source, name in zip(sources, files, strict=True))
    matches: list[Match] = []
    left_out: list[Left] = []
    remarks: list[str] = []
    for side in others:
        found, left = match(first, side, force=force)
        matches += found
        left_out += left
        if any(each.base.step_ms and each.new.step_ms for each in found):
            remarks.append(time_apart(first, side))
    for side in (first, *others):
        if machines := machines_in_words(side.machines):
            remarks.append(f"{side.name} was measured on {machines}")
    if not matches:
        raise NothingRan(f"nothing could be compared: {reasons(left_out)}")
    times = compare_times(matches, min_effect)
    return Comparison(
        files=tuple(files),
        times=times,
        accuracies=compare_accuracies(matches),
        left_out=tuple(left_out),
        trends=trends(files, matches, min_effect) if more else (),
        min_effect=min_effect,
        remarks=tuple(filter(None, remarks)),
        advice=would_decide([pair.processes_needed for pair in times if pair.verdict == "unclear"]),
    )


def labels(sources: Sequence[Source]) -> list[str]:
    """A short name for each file, a longer one where the short ones are alike."""
    paths = [Path(source) if isinstance(source, (str, Path)) else Path("table") for source in sources]
    runs = [path.absolute().parent if path.name == "results.csv" else path for path in paths]
    short = [path.name or str(path) for path in runs]
    for names in (short, [str(path) for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(short, 1)]


def compare_times(matches: Sequence[Match], min_effect: float) -> tuple[TimePair, ...]:
    """Judge the step times of all pairs together."""
    timed = [each for each in matches if each.base.step_ms and each.new.step_ms]
    timed = divided_by_kind(timed, math.log1p(min_effect))
    groups: dict[Combination, dict[tuple[str, str, Combination], Times]] = {}
    for each in timed:
        lines = groups.setdefault(group_of(each.combination), {})
        lines["", each.machine_kind, each.combination] = each.base.times
        lines[each.file, each.machine_kind, each.combination] = each.new.times
    spreads = {group: scatter(times.values() for times in lines.values()) for group, lines in groups.items()}
    gaps = [
        time_difference(each.base.times, each.new.times, spreads[group_of(each.combination)])
        or log_difference(each.base.step_ms, each.new.step_ms, spreads[group_of(each.combination)])
        for each in timed
    ]
    matters = math.log1p(min_effect)
    return tuple(
        TimePair(
            combination=each.combination,
            file=each.file,
            verdict=OF_TIMES[judged.verdict],
            ratio=exponential(gap.estimate),
            low=exponential(judged.low),
            high=exponential(judged.high),
            p_value=judged.p_value,
            detectable=exponential(judged.detectable),
            upper=exponential(judged.upper),
            base_ms=geometric_mean(each.base.step_ms),
            new_ms=geometric_mean(each.new.step_ms),
            base_processes=len(each.base.step_ms),
            new_processes=len(each.new.step_ms),
            note=joined(
                each.note,
                unlike_shares(each.base.served, each.new.served),
                flags_of_both(each.base, each.new),
                "one process on a side: its spread is assumed" * gap.assumed,
            ),
            paired=gap.paired,
            base_served=each.base.served,
            new_served=each.new.served,
            base_flags=each.base.flags,
            new_flags=each.new.flags,
            standard_error=gap.error,
            processes_needed=processes_to_decide(gap, matters, len(gaps))
            if judged.verdict == "unclear"
            else None,
            machine_kind=each.machine_kind,
        )
        for each, gap, judged in zip(timed, gaps, judge(gaps, matters), strict=True)
    )


def divided_by_kind(matches: Sequence[Match], matters: float) -> list[Match]:
    """Matches whose ratios differ between kinds of machines are divided into one for each kind."""
    lines = [
        by_kind(
            (each.file, group_of(each.combination)),
            {kind: (base.times, new.times) for kind, (base, new) in each.kinds.items()},
        )
        for each in matches
    ]
    return [
        part
        for each, differs in zip(matches, differing(lines, matters), strict=True)
        for part in (of_each_kind(each) if differs else [each])
    ]


def of_each_kind(match: Match) -> list[Match]:
    """What each kind of machine has of a match."""
    return [
        match._replace(base=base, new=new, kinds={}, machine_kind=kind)
        for kind, (base, new) in match.kinds.items()
        if base.step_ms and new.step_ms
    ]


def group_of(combination: Combination) -> Combination:
    """What the lines of a comparison group share: all but backend and seed."""
    return replace(combination, backend="", seed=0)


def compare_accuracies(matches: Sequence[Match]) -> tuple[AccuracyPair, ...]:
    """Judge the accuracies of all combinations together, the seeds of a combination being its sample."""
    groups: dict[tuple[str, Combination], list[Match]] = {}
    for each in matches:
        if each.base.accuracies and each.new.accuracies:
            groups.setdefault((each.file, replace(each.combination, seed=0)), []).append(each)
    gaps: dict[tuple[str, Combination], Difference] = {}
    for key, group in groups.items():
        gap = difference(accuracies(group, "base"), accuracies(group, "new"), FLOOR_POINTS, assumed=None)
        if gap is not None and not lengths(group):
            gaps[key] = gap
    judged = dict(zip(gaps, judge(list(gaps.values()), MIN_POINTS), strict=True))
    return tuple(accuracy_pair(key[0], group, judged.get(key)) for key, group in groups.items())


def accuracy_pair(file: str, group: Sequence[Match], judged: Judged | None) -> AccuracyPair:
    """One combination's accuracies with their verdict."""
    words: dict[str, Verdict] = {"more": "higher", "less": "lower", "same": "same", "unclear": "unclear"}
    base, new = accuracies(group, "base"), accuracies(group, "new")
    means = sum(base) / len(base), sum(new) / len(new)
    single = "one seed on a side shows no spread" if min(len(base), len(new)) == 1 else ""
    return AccuracyPair(
        combination=group[0].combination,
        file=file,
        verdict=words[judged.verdict] if judged else "unclear",
        change=means[1] - means[0],
        low=judged.low if judged else None,
        high=judged.high if judged else None,
        p_value=judged.p_value if judged else None,
        detectable=judged.detectable if judged else None,
        base_accuracy=means[0],
        new_accuracy=means[1],
        base_seeds=len(base),
        new_seeds=len(new),
        note=joined(*dict.fromkeys(each.note for each in group), lengths(group), single),
    )


def accuracies(group: Sequence[Match], side: str) -> list[float]:
    """The accuracies of all seeds on one side."""
    return [value for each in group for value in getattr(each, side).accuracies]


def lengths(group: Sequence[Match]) -> str:
    """A note on trainings of unlike lengths, whose accuracies cannot be compared; else empty."""
    base = [value for each in group for value in each.base.epochs]
    new = [value for each in group for value in each.new.epochs]
    longest, shortest = max(base + new, default=0), min(base + new, default=0)
    if longest - shortest <= SAME_EPOCHS * longest:
        return ""
    return f"trained for {span(base)} and {span(new)} epochs"


def span(values: Sequence[float]) -> str:
    """A range of numbers, or the one they all are."""
    low, high = f"{min(values, default=0):.3g}", f"{max(values, default=0):.3g}"
    return low if low == high else f"{low} to {high}"
