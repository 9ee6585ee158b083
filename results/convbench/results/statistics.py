"""The statistics behind every interval: medians, the hierarchical bootstrap, and Student's t.

Processes are the sampling unit. Steps of one process share its memory layout, its autotuner's choice and
its thread placement, and are no independent measurements; between processes there is a spread of its own,
which only more processes can show (Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = Sequence[float] | NDArray[np.float64]

RESAMPLES = 2000


class Interval(NamedTuple):
    """A value with the interval that holds the true one at the stated confidence."""

    value: float
    low: float
    high: float


def median(values: Samples) -> float:
    """The middle value."""
    import numpy as np

    return float(np.median(np.asarray(values)))


def percentile(values: Samples, percent: float) -> float:
    """The value that `percent` of the values stay below, interpolated linearly."""
    import numpy as np

    return float(np.percentile(np.asarray(values), percent))


def relative_spread(values: Samples) -> float:
    """Half of the range from the 10th to the 90th percentile, over the median."""
    return (percentile(values, 90) - percentile(values, 10)) / (2 * median(values))


def median_interval(processes: Sequence[Samples], confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """The median over processes of the median over their steps, with its interval; None for fewer than 2."""
    if len(processes) < 2:
        return None
    logs = bootstrap_log_medians(processes, seed)
    center = median([median(steps) for steps in processes])
    margin = widened(float(logs.std()), len(processes)) * t_quantile((1 + confidence) / 2, len(processes) - 1)
    return Interval(center, center * math.exp(-margin), center * math.exp(margin))


def ratio_interval(
    base: Sequence[Samples], new: Sequence[Samples], confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """The ratio new / base of their medians, with its interval; None if either has fewer than two processes.

    A hierarchical bootstrap (resample processes, then steps within each: Kalibera & Jones 2013, section 9.3;
    Davison & Hinkley 1997, section 3.8) of the mean logarithm of process medians. The bootstrap of three
    processes is too narrow by its missing degrees of freedom; so it serves for the standard error alone,
    which is set right by n / (n - 1) and multiplied by Student's t with Welch's degrees of freedom.
    """
    if min(len(base), len(new)) < 2:
        return None
    sides = [
        (len(side), float(bootstrap_log_medians(side, seed + i).std())) for i, side in enumerate((base, new))
    ]
    variances = [(n, widened(deviation, n) ** 2) for n, deviation in sides]
    total = sum(variance for _, variance in variances)
    freedom = welch_freedom(variances)
    margin = math.sqrt(total) * t_quantile((1 + confidence) / 2, freedom)
    ratio = median([median(steps) for steps in new]) / median([median(steps) for steps in base])
    return Interval(ratio, ratio * math.exp(-margin), ratio * math.exp(margin))


def bootstrap_log_medians(processes: Sequence[Samples], seed: int) -> NDArray[np.float64]:
    """Resample processes, then steps within each: the mean log-median of each resample, (RESAMPLES,)."""
    import numpy as np

    random = np.random.default_rng(seed)
    count = len(processes)
    logs = np.empty((count, RESAMPLES))  # a pool for each process: log-medians of its resampled steps
    for index, steps in enumerate(processes):
        values = np.asarray(steps, dtype=np.float64)
        drawn = random.integers(0, len(values), (RESAMPLES, len(values)))
        logs[index] = np.log(np.median(values[drawn], axis=1))
    chosen = random.integers(0, count, (RESAMPLES, count))
    means: NDArray[np.float64] = logs[chosen, random.integers(0, RESAMPLES, chosen.shape)].mean(axis=1)
    return means


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
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_tail(middle, freedom) / 2 < probability else (low, middle)
    return (low + high) / 2


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
