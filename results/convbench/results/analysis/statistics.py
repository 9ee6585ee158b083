"""The statistics behind figures and intervals: geometric means of medians, hierarchical bootstrap, Student's t.

Processes are the sampling unit. Steps of one process share its memory layout, its autotuner's choice and
its thread placement, and are no independent measurements; between processes there is a spread of its own,
which only more processes can show (Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = Sequence[float] | NDArray[np.float64]

LARGEST = 700.0  # the exponential of more is no float
SHORT = 100  # values that are sorted sooner than handed to numpy


class Interval(NamedTuple):
    """A value with the interval that holds the true one at the stated confidence."""

    value: float
    low: float
    high: float


def median(values: Samples) -> float:
    """The middle value; NaN if one of them is."""
    if 0 < len(values) < SHORT and not any(map(math.isnan, values)):
        ordered, half = sorted(values), len(values) // 2
        return float(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)
    import numpy as np

    return float(np.median(np.asarray(values)))


def geometric_mean(values: Sequence[float]) -> float:
    """The exponential of the mean logarithm: the ratio of two is the mean ratio, whichever way it is taken."""
    return math.exp(sum(map(math.log, values)) / len(values))


def median_interval(processes: Sequence[Samples], confidence: float = 0.95) -> Interval | None:
    """The geometric mean over processes of their median steps, with its interval; None for fewer than 2."""
    if len(processes) < 2:
        return None
    error = widened(bootstrap_error(processes), len(processes))
    center = geometric_mean([median(steps) for steps in processes])
    margin = min(error * t_quantile((1 + confidence) / 2, len(processes) - 1), LARGEST)
    return Interval(center, center * math.exp(-margin), center * math.exp(margin))


def ratio_interval(
    base: Sequence[Samples], new: Sequence[Samples], confidence: float = 0.95
) -> Interval | None:
    """The ratio new / base of their geometric means over processes, with its interval; None if either has fewer
    than two.

    A hierarchical bootstrap (resample processes, then steps within each: Kalibera & Jones 2013, section 9.3;
    Davison & Hinkley 1997, section 3.8) of the mean logarithm of process medians. The bootstrap of three
    processes is too narrow by its missing degrees of freedom; so it serves for the standard error alone,
    which is set right by n / (n - 1) and multiplied by Student's t with Welch's degrees of freedom.
    """
    if min(len(base), len(new)) < 2:
        return None
    variances = [(len(side), widened(bootstrap_error(side), len(side)) ** 2) for side in (base, new)]
    total = sum(variance for _, variance in variances)
    freedom = welch_freedom(variances)
    margin = min(math.sqrt(total) * t_quantile((1 + confidence) / 2, freedom), LARGEST)
    centers = [geometric_mean([median(steps) for steps in side]) for side in (base, new)]
    ratio = centers[1] / centers[0]
    return Interval(ratio, ratio * math.exp(-margin), ratio * math.exp(margin))


def bootstrap_error(processes: Sequence[Samples]) -> float:
    """The standard deviation over resamples, of processes and then of steps, of the mean log-median.

    It is computed, not drawn: each of n resampled processes is any of the n, and its log-median any of those
    of its resampled steps, so the mean has the variance of one such pick over n.
    """
    import numpy as np

    moments = np.asarray([log_median_moments(steps) for steps in processes])
    variance = float(moments[:, 1].mean() - moments[:, 0].mean() ** 2)
    return math.sqrt(max(variance, 0.0) / len(processes))


def log_median_moments(steps: Samples) -> tuple[float, float]:
    """Mean and mean square of the logarithm of the median of resampled steps, over all resamples.

    The exact bootstrap: a resample's order statistics are among the sample's with known probabilities
    (Hutson & Ernst, "The exact bootstrap mean and variance of an L-estimator", JRSS B 62, 2000).
    """
    import numpy as np

    values = np.sort(np.asarray(steps, dtype=np.float64))
    at, weights = median_weights(len(values))
    logs = np.log((values[at[0]] + values[at[1]]) / 2)
    return float(weights @ logs), float(weights @ logs**2)


@lru_cache(maxsize=64)
def median_weights(count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which two of `count` ordered values a resample's median is the mean of, (2, pairs), and how probably.

    Of an odd number they are one value. Pairs that are less probable than 1e-12 are left out, which keeps
    those of the middle.
    """
    import numpy as np

    upper = count // 2 + 1  # the rank of the upper of the two middle values, of the only one if odd
    lower = (count + 1) // 2
    reach = math.ceil(5 * math.sqrt(count)) + 5  # ten standard deviations of the median's place
    places = np.arange(max(1, lower - reach), min(count, lower + reach) + 1)
    one = np.diff([at_most(place, lower, count) for place in (places[0] - 1, *places)])
    pairs, weights = np.stack([places - 1, places - 1]), one
    if (
        upper > lower
    ):  # `lower` draws up to the i-th value, one of them the i-th; the others likewise from the j-th
        every = np.arange(1, count + 1)
        below = lower * np.log(every / count) + np.log1p(-(((every - 1) / every) ** lower))
        above = below[::-1]
        first, second = np.meshgrid(places - 1, places - 1, indexing="ij")
        apart = first < second
        first, second = first[apart], second[apart]
        unlike = np.exp(log_binomial(count, lower) + below[first] + above[second])
        alike = one.copy()
        np.subtract.at(alike, first - (places[0] - 1), unlike)
        pairs = np.stack([np.append(first, places - 1), np.append(second, places - 1)])
        weights = np.append(unlike, np.maximum(alike, 0.0))
    kept = weights > 1e-12
    return pairs[:, kept], weights[kept] / weights[kept].sum()


def at_most(place: int, rank: int, count: int) -> float:
    """The chance that the `rank`-th smallest of `count` draws is at most the `place`-th of `count` values."""
    return incomplete_beta(rank, count - rank + 1, place / count) if 0 < place < count else float(place > 0)


def log_binomial(count: int, chosen: int) -> float:
    """The logarithm of a binomial coefficient."""
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def widened(deviation: float, processes: int) -> float:
    """The standard error that a bootstrap of so few processes understates."""
    return deviation * math.sqrt(processes / (processes - 1))


def welch_freedom(variances: Sequence[tuple[float, float]]) -> float:
    """Welch and Satterthwaite's degrees of freedom from (number, squared standard error) of each side."""
    total = sum(variance for _, variance in variances)
    parts = sum(variance**2 / (number - 1) for number, variance in variances)
    return total**2 / parts if parts > 0 else float(sum(number - 1 for number, _ in variances))


def t_tail(t: float, freedom: float) -> float:
    """The probability that Student's t lies further from zero than `t`, both sides together."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(probability: float, freedom: float) -> float:
    """The value that Student's t stays below with this probability, which is at least one half."""
    low, high = 0.0, 1.0
    while 1 - t_tail(high, freedom) / 2 < probability:
        low, high = high, high * 2
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    t = (low + high) / 2
    for _ in range(80):  # Newton's method, kept within what is known
        excess = 1 - t_tail(t, freedom) / 2 - probability
        low, high = (low, t) if excess > 0 else (t, high)
        density = math.exp(scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        last, t = t, t - excess / density
        if not low <= t <= high:
            t = (low + high) / 2
        if abs(t - last) <= 1e-12 * t:
            break
    return t


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function (DLMF 8.17; continued fraction 8.17.22, by Lentz's method)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges on the other side
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * fraction / a


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance of any false alarm stays below each."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected
