"""Decides whether one side is faster than the other, and owns up where the data cannot tell.

A side is the median step times of its processes, one number each: steps of one process are not independent,
processes are (see `statistics`). Times are compared by their logarithms, for noise multiplies, with Welch's t
test, which lets each side have its own spread and pays for few processes with few degrees of freedom. The
bootstrap was tried and not taken: with three processes a side, its 99 % interval misses the equality of
equals one time in seven.

Where both sides come from one interleaved run (`convbench run --against`), a process has a counterpart that
ran just before or after it. From PAIRED_FROM of them on, the logarithms of their ratios are tested instead,
with Student's t: what a busy machine does to both alike then cancels. Which test is taken depends on how many
there are and never on what they say.

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from convbench.results.analysis.statistics import holm, t_quantile, t_tail, welch_freedom

Verdict = Literal["faster", "slower", "higher", "lower", "same", "unclear"]

ALPHA = 0.01  # chance that any pair of a comparison of equals is called different
CONFIDENCE = 0.95  # of the intervals shown
MIN_EFFECT = 0.03  # of time: our choice, for the drift between two runs cannot be seen within either
MIN_POINTS = 0.01  # of accuracy: one percentage point

# One process says nothing of the spread between processes. It is then taken to be large, so that only gross
# differences are called.
ASSUMED_SPREAD = 0.10
KNOWN = 1e6  # values that an assumed spread counts as: there is nothing uncertain about an assumption
FLOOR_SPREAD = 0.001  # three processes may agree by chance, or their times be rounded
FLOOR_POINTS = 0.001  # of accuracy: ten of ten thousand images
PAIRED_FROM = 6  # processes a side: pairs have half as many degrees of freedom, which fewer cannot spare
LARGEST = 700.0  # the logarithm of about the largest float


@dataclass(frozen=True)
class Difference:
    """How far two sides lie apart, on the scale of the test: its standard error, freedom and p-value."""

    estimate: float
    error: float
    freedom: float
    assumed: bool = False  # a spread was assumed for a side of a single process

    @property
    def p_value(self) -> float:
        """The chance of a difference this large between equals."""
        return t_tail(abs(self.estimate) / self.error, self.freedom)

    def margin(self, tail: float) -> float:
        """Half the width of the interval that leaves `tail` on both sides together."""
        return critical(tail, self.freedom) * self.error


def difference(
    base: Sequence[float], new: Sequence[float], floor: float, assumed: float | None
) -> Difference | None:
    """The difference of the means, new - base; None if a side has one value and no spread is assumed."""
    variances: list[tuple[float, float]] = []
    single = False
    for values in (base, new):
        count = len(values)
        if count == 1:
            if assumed is None:
                return None
            single = True
            variances.append((KNOWN, assumed**2))
        else:
            variances.append((count, max(variance(values), floor**2) / count))
    error = math.sqrt(sum(squared for _, squared in variances))
    estimate = sum(new) / len(new) - sum(base) / len(base)
    return Difference(estimate, error, welch_freedom(variances), single)


def variance(values: Sequence[float]) -> float:
    """The variance of what the values are a sample of."""
    mean = sum(values) / len(values)
    return sum([(value - mean) ** 2 for value in values]) / (len(values) - 1)


def log_difference(base: Sequence[float], new: Sequence[float]) -> Difference:
    """The difference of the logarithms of two sides' times: its exponential is their ratio, new / base."""
    found = difference(list(map(math.log, base)), list(map(math.log, new)), FLOOR_SPREAD, ASSUMED_SPREAD)
    assert found is not None  # a spread is assumed where there is none
    return found


def paired_log_difference(base: Sequence[float], new: Sequence[float]) -> Difference:
    """Likewise where the times at one position were measured one after the other: what the machine did to both
    alike cancels. Of PAIRED_FROM processes a side at least."""
    gaps = [math.log(after / before) for before, after in zip(base, new, strict=True)]
    count = len(gaps)
    error = math.sqrt(max(variance(gaps), 2 * FLOOR_SPREAD**2) / count)
    return Difference(sum(gaps) / count, error, count - 1)


@dataclass(frozen=True)
class Judged:
    """What is concluded of one difference, on the scale of the test."""

    verdict: Literal["more", "less", "same", "unclear"]
    low: float
    high: float
    p_value: float  # corrected for the number of differences judged together
    detectable: float  # the smallest difference that would have been called


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
        judged.append(Judged(verdict, low, high, p_value, detectable))
    return judged


def as_ratio(log_difference: float) -> float:
    """The ratio of a difference of logarithms; a number even where noise makes it larger than a float holds."""
    return math.exp(max(-LARGEST, min(log_difference, LARGEST)))


def effect(ratio: float) -> str:
    """The size of a slow-down in words, such as `12.5%` or `3.1×`."""
    if ratio > 100:
        return "more than 100×"
    return f"{ratio:.1f}×" if ratio > 2 else f"{ratio - 1:.1%}"


def critical(tail: float, freedom: float) -> float:
    """The quantile of Student's t that leaves `tail` on both sides together, interpolated between freedoms.

    Thousands of pairs each have their own freedom; between neighbours in the grid the quantile is linear in
    1 / freedom to within a thousandth.
    """
    above = next((point for point in GRID if point >= freedom), GRID[-1])
    below = GRID[max(GRID.index(above) - 1, 0)]
    if below == above or freedom >= above:
        return grid_quantile(tail, above)
    share = (1 / below - 1 / freedom) / (1 / below - 1 / above)
    high, low = grid_quantile(tail, below), grid_quantile(tail, above)
    return math.exp((1 - share) * math.log(high) + share * math.log(low))


GRID = (*(1 + step / 20 for step in range(60)), *(4 * 1.05**step for step in range(120)), KNOWN)


@cache
def grid_quantile(tail: float, freedom: float) -> float:
    """Student's t at a point of the grid."""
    return t_quantile(1 - tail / 2, freedom)
