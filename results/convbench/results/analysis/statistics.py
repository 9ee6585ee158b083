"""Medians, geometric means, Student's t and Holm's correction.

Student's t comes from `scipy.special`: `scipy.stats` computes it with the same functions, and takes five times as
long to import. It is imported at first use, since the process that measures needs none of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A value with the interval that holds the true one at the stated confidence."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> float:
    """The middle value; NaN if one of them is."""
    return math.nan if any(map(math.isnan, values)) else float(statistics.median(values))


def geometric_mean(values: Sequence[float]) -> float:
    """The exponential of the mean logarithm: the ratio of two is the mean ratio, whichever way it is taken."""
    return math.exp(sum(map(math.log, values)) / len(values))


def mean_interval(medians: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The geometric mean of processes' times, with Student's interval of the logarithms; None for fewer than 2."""
    count = len(medians)
    if count < 2:
        return None
    logs = [math.log(each) for each in medians]
    error = statistics.stdev(logs) / math.sqrt(count)
    center, margin = sum(logs) / count, error * t_quantile((1 + confidence) / 2, count - 1)
    return Interval(exponential(center), exponential(center - margin), exponential(center + margin))


def exponential(logarithm: float) -> float:
    """A number even where noise makes it larger than a float holds."""
    return math.exp(max(-700.0, min(logarithm, 700.0)))


def t_tail(t: float, freedom: float) -> float:
    """The probability that Student's t lies further from zero than `t`, both sides together."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def t_quantile(probability: float, freedom: float) -> float:
    """The value that Student's t stays below with this probability."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance of any false alarm stays below each."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected
