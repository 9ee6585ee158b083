"""Decides whether one side is faster than the other, and says where the data cannot tell.

A side is the median step times of its processes, one number each: steps of one process share its memory layout,
its autotuner's choice and its thread placement and are not independent, processes are (Kalibera & Jones,
"Rigorous benchmarking in reasonable time", ISMM 2013). Times are compared by their logarithms, for noise
multiplies, with Welch's t test, which lets each side have its own spread and pays for few processes with few
degrees of freedom. This is the only method for intervals: the table of a run, its charts and `compare` show the
same numbers for the same processes. A bootstrap was tried and dropped: with three processes a side, its 99 %
interval misses the equality of equals one time in seven.

Two processes hardly show their spread: Welch's interval is then up to thirteen standard errors wide on either
side. A side of two therefore takes a part of its variance from the other lines of its comparison group, as limma
does (Smyth, "Linear models and empirical Bayes methods", 2004); see `moderated`. Three and more stand for
themselves, since the noise of backends differs.

Processes of a run on several machines are compared within blocks only: a block is one round of all backends on one
machine, and the machines themselves may differ by far more than the backends. The logarithms of their ratios are
tested, however many there are.

Where both sides come from one interleaved run, a process has a counterpart that ran just before or after it.
From PAIRED_FROM of them on, the logarithms of their ratios are tested instead, with Student's t: what a busy
machine does to both alike then cancels. Which test is taken depends on how many there are and never on what they
say.

A pair is called `faster` or `slower` when its p-value, corrected by Holm for all pairs that are judged with
it, is below ALPHA, *and* the difference exceeds the smallest that matters: two runs of one program at
different hours differ by more than the spread within either, and no number of processes shows that. It is
`same` when its 95 % interval lies within what does not matter. All else is `unclear`, with the smallest
difference that this data could have shown.

False alarms among equals, `tests/results/analysis/test_significance.py`: below 1 % of comparisons for normal,
skewed and heavy-tailed spreads, of 3 or 5 processes and 1 or 10 pairs. Processes that fall into two modes far
apart, such as an autotuner's two choices, defeat any test of three: all of one side may fall into one mode,
and all of the other into the other. Where both modes are as likely, 3 % of comparisons of a single pair raise
an alarm and up to 30 % of those of ten; where one process in five falls into the rarer, 1 % and up to 9 %; of
five processes a side, at most 1 % and 3 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from convbench.results.analysis.statistics import (
    Interval,
    exponential,
    holm,
    mean_interval,
    t_quantile,
    t_tail,
)

Times: TypeAlias = Mapping[Hashable, float]  # the median step of each process, by what names the process


class OnMachine(NamedTuple):
    """Names a process of a cluster: which one, and the machine that measured its block."""

    process: Hashable
    machine: Hashable


Verdict = Literal["faster", "slower", "higher", "lower", "same", "unclear"]
OF_TIMES: Mapping[str, Verdict] = {"more": "slower", "less": "faster", "same": "same", "unclear": "unclear"}

ALPHA = 0.01  # chance that any pair of a comparison of equals is called different
CONFIDENCE = 0.95  # of the intervals shown, and of the one-sided ones that a gate goes by
MIN_EFFECT = 0.03  # of time: our choice, for the drift between two runs cannot be seen within either
MIN_POINTS = 0.01  # of accuracy: one percentage point

# One process says nothing of the spread between processes. It is then taken to be large, so that only gross
# differences are called.
ASSUMED_SPREAD = 0.10
KNOWN = 1e6  # values that an assumed spread counts as: there is nothing uncertain about an assumption
FLOOR_SPREAD = 0.001  # three processes may agree by chance, or their times be rounded
FLOOR_POINTS = 0.001  # of accuracy: ten of ten thousand images
PRIOR = 3  # degrees of freedom of the group's variance in that of two processes
PAIRED_FROM = 6  # processes a side: pairs have half as many degrees of freedom, which fewer cannot spare


@dataclass(frozen=True)
class Difference:
    """How far two sides lie apart, on the scale of the test: its standard error, freedom and p-value.

    `processes` is the number of processes a side, the harmonic mean where the sides differ.
    """

    estimate: float
    error: float
    freedom: float
    processes: float = 1.0
    assumed: bool = False  # a spread was assumed for a side of a single process
    paired: bool = False  # each process was compared with its counterpart

    @property
    def p_value(self) -> float:
        """The chance of a difference this large between equals."""
        return t_tail(abs(self.estimate) / self.error, self.freedom)

    def margin(self, tail: float) -> float:
        """Half the width of the interval that leaves `tail` on both sides together."""
        return -t_quantile(tail / 2, self.freedom) * self.error

    def interval(self) -> Interval:
        """The ratio that a difference of logarithms stands for, with its interval."""
        margin = self.margin(1 - CONFIDENCE)
        return Interval(*map(exponential, (self.estimate, self.estimate - margin, self.estimate + margin)))


MOST = 1000  # processes a side: nobody takes more
POWER = 0.9  # chance that so many show it, if the data have the true difference and spread


def processes_to_show(gap: Difference, distance: float, tail: float) -> int | None:
    """How many processes a side would show that the difference lies no further off than `distance`, estimated
    from their spread; `tail` is left on both sides together. None for more than MOST."""

    def is_enough(processes: int) -> bool:
        freedom = processes - 1 if gap.paired and processes >= PAIRED_FROM else 2 * (processes - 1)
        error = gap.error * math.sqrt(gap.processes / processes)
        return (t_quantile(POWER, freedom) - t_quantile(tail / 2, freedom)) * error <= distance

    there = math.floor(gap.processes) + 1
    found = bisect_left(range(there, MOST + 1), True, key=is_enough) + there
    return found if found <= MOST else None


def processes_to_decide(gap: Difference, matters: float, together: int) -> int | None:
    """How many processes a side would call an unclear one of `together` differences different, or the same."""
    away = abs(gap.estimate)
    if away > matters:
        return processes_to_show(gap, away, ALPHA / together)
    return processes_to_show(gap, matters - away, 1 - CONFIDENCE)


def processes_to_pass(gap: Difference, limit: float, together: int) -> int | None:
    """How many processes a side would show on which side of `limit` a slow-down is."""
    if gap.estimate < limit:
        return processes_to_show(gap, limit - gap.estimate, 2 * (1 - CONFIDENCE))
    slower = processes_to_show(gap, gap.estimate, ALPHA / together)
    beyond = processes_to_show(gap, gap.estimate - limit, 1 - CONFIDENCE)
    return None if slower is None or beyond is None else max(slower, beyond)


def would_decide(needed: Collection[int | None]) -> str:
    """How many processes a side would decide the pairs that are not decided, in words; empty without any."""
    known = sorted(each for each in needed if each is not None)
    if not known:
        what = "unclear pair" if len(needed) == 1 else f"{len(needed)} unclear pairs"
        return f"to decide the {what}, more than {MOST:,} processes a side are needed" if needed else ""
    if len(needed) == 1:
        return f"about {known[0]} processes a side would decide this"
    decided = {each: sum(one <= each for one in known) for each in (known[(len(known) - 1) // 2], known[-1])}
    said = [
        f"about {each}{side} would decide {'all' if n == len(needed) else n}"
        for (each, n), side in zip(decided.items(), (" processes a side", ""), strict=False)
    ]
    return f"of {len(needed)} unclear pairs, {', '.join(said)}"


@dataclass(frozen=True)
class Scatter:
    """The squared deviations of logarithms of times within the lines of a comparison group, and their freedom."""

    squares: float = 0.0
    freedom: int = 0


def scatter(lines: Iterable[Collection[float]]) -> Scatter:
    """That of lines, each the times of its processes."""
    logs = [list(map(math.log, times)) for times in lines if len(times) > 1]
    return Scatter(
        sum(variance(line) * (len(line) - 1) for line in logs), sum(len(line) - 1 for line in logs)
    )


def moderated(own: float, group: Scatter) -> tuple[float, float]:
    """The variance of a side of two processes and its degrees of freedom, from its own and that of its group.

    The other lines of the group count as PRIOR degrees of freedom; what they lack of them, ASSUMED_SPREAD fills.
    They count for less the further the two processes lie apart, which a noisier backend may cause. In the degrees
    of freedom they count half, because both sides of a comparison take from the same lines, and for one at least.
    """
    others = group.freedom - 1
    missing = max(PRIOR - others, 0)
    squares = max(group.squares - own, 0.0) + missing * ASSUMED_SPREAD**2
    prior = max(squares / (others + missing), FLOOR_SPREAD**2)
    own = max(own, FLOOR_SPREAD**2)
    weight = PRIOR * min(1.0, prior / own) ** 2
    return (weight * prior + own) / (weight + 1), 1 + max(weight, 1) / 2


def difference(
    base: Sequence[float],
    new: Sequence[float],
    floor: float,
    assumed: float | None,
    group: Scatter | None = None,
) -> Difference | None:
    """The difference of the means, new - base; None if a side has one value and no spread is assumed.

    With a `group`, the variance of a side of two is moderated.
    """
    variances: list[tuple[float, float]] = []
    single = False
    for values in (base, new):
        count = len(values)
        if count == 1:
            if assumed is None:
                return None
            single = True
            variances.append((KNOWN, assumed**2))
        elif count == 2 and group is not None:
            squared, freedom = moderated(variance(values), group)
            variances.append((freedom + 1, squared / count))
        else:
            variances.append((count, max(variance(values), floor**2) / count))
    error = math.sqrt(sum(squared for _, squared in variances))
    estimate = sum(new) / len(new) - sum(base) / len(base)
    processes = 2 / (1 / len(base) + 1 / len(new))
    return Difference(estimate, error, welch_freedom(variances), processes, single)


def variance(values: Sequence[float]) -> float:
    """The sample variance; `statistics.variance` computes with exact fractions, which is slow."""
    mean = sum(values) / len(values)
    return sum([(value - mean) ** 2 for value in values]) / (len(values) - 1)


def welch_freedom(variances: Sequence[tuple[float, float]]) -> float:
    """Welch and Satterthwaite's degrees of freedom from (number, squared standard error) of each side."""
    total = sum(squared for _, squared in variances)
    parts = sum(squared**2 / (number - 1) for number, squared in variances)
    return total**2 / parts if parts > 0 else float(sum(number - 1 for number, _ in variances))


def time_difference(base: Times, new: Times, group: Scatter | None = None) -> Difference | None:
    """The difference of the logarithms of two sides' times, paired where both have the same PAIRED_FROM or more
    processes, or come from several machines; None where these have no block in common. Both sides are lines of
    `group`; without one, they are all of it."""
    if machines_of(base, new) > 1:
        shared = [process for process in base if process in new]
        base, new = ({process: side[process] for process in shared} for side in (base, new))
        if not shared:
            return None
        if len(shared) > 1:
            return paired_log_difference(list(base.values()), list(new.values()))
    if len(base) >= PAIRED_FROM and base.keys() == new.keys():
        return paired_log_difference(list(base.values()), [new[process] for process in base])
    return log_difference(list(base.values()), list(new.values()), group)


def machines_of(*sides: Times) -> int:
    """How many machines of a cluster measured these; 0 without a cluster."""
    return len({each.machine for side in sides for each in side if isinstance(each, OnMachine)})


def time_ratio(base: Times, new: Times, group: Scatter | None = None) -> Interval | None:
    """The ratio new / base of times with its interval; None where a side has fewer than two processes."""
    if min(len(base), len(new)) < 2:
        return None
    gap = time_difference(base, new, group)
    return None if gap is None or gap.assumed else gap.interval()


def time_interval(times: Collection[float], group: Scatter) -> Interval | None:
    """The geometric mean of the times of a line of `group`, with its interval; None for fewer than two."""
    if len(times) != 2:
        return mean_interval(list(times), CONFIDENCE)
    logs = list(map(math.log, times))
    squared, freedom = moderated(variance(logs), group)
    return Difference(sum(logs) / 2, math.sqrt(squared / 2), freedom).interval()


def log_difference(base: Sequence[float], new: Sequence[float], group: Scatter | None = None) -> Difference:
    """The difference of the logarithms of two sides' times: its exponential is their ratio, new / base."""
    logs = list(map(math.log, base)), list(map(math.log, new))
    found = difference(*logs, FLOOR_SPREAD, ASSUMED_SPREAD, group or scatter([base, new]))
    assert found is not None  # a spread is assumed where there is none
    return found


def paired_log_difference(base: Sequence[float], new: Sequence[float]) -> Difference:
    """The same where the times at one position were measured one after the other: what the machine did to both
    alike cancels. For PAIRED_FROM processes a side at least, or those of several machines."""
    gaps = [math.log(after / before) for before, after in zip(base, new, strict=True)]
    count = len(gaps)
    error = math.sqrt(max(variance(gaps), 2 * FLOOR_SPREAD**2) / count)
    return Difference(sum(gaps) / count, error, count - 1, count, paired=True)


@dataclass(frozen=True)
class Judged:
    """What is concluded of one difference, on the scale of the test."""

    verdict: Literal["more", "less", "same", "unclear"]
    low: float
    high: float
    p_value: float  # corrected for the number of differences judged together
    detectable: float  # the smallest difference that would have been called
    upper: float  # the end of the one-sided interval: the true difference is hardly larger


def judge(differences: Sequence[Difference], matters: float) -> list[Judged]:
    """Judge differences together; those within `matters` of zero are never called different."""
    corrected = holm([each.p_value for each in differences])
    judged = []
    for each, p_value in zip(differences, corrected, strict=True):
        margin = each.margin(1 - CONFIDENCE)
        low, high = each.estimate - margin, each.estimate + margin
        verdict: Literal["more", "less", "same", "unclear"] = "unclear"
        if p_value < ALPHA and abs(each.estimate) > matters:
            verdict = "more" if each.estimate > 0 else "less"
        elif -matters < low and high < matters and not each.assumed:
            verdict = "same"
        detectable = max(each.margin(ALPHA / len(differences)), matters)
        upper = each.estimate + each.margin(2 * (1 - CONFIDENCE))
        judged.append(Judged(verdict, low, high, p_value, detectable, upper))
    return judged


def effect(ratio: float) -> str:
    """The size of a slow-down in words, such as `12.5%` or `3.1×`."""
    if ratio > 100:
        return "more than 100×"
    return f"{ratio:.1f}×" if ratio > 2 else f"{ratio - 1:.1%}"
