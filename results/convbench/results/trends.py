"""How a combination's step time went over more than two files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convbench.results.pairing import Match
from convbench.results.schema import Combination
from convbench.results.verdicts import FLOOR_SPREAD, Difference, Verdict, judge


@dataclass(frozen=True)
class Trend:
    """The step time of one combination in each file, None where it was not measured or not comparable.

    `change` is the ratio of the last to the first that there are, by a straight line through the logarithms.
    A file counts as one observation, since the machine drifts between runs; `low` and `high` are None for
    fewer than three.
    """

    combination: Combination
    step_ms: tuple[float | None, ...]
    change: float
    low: float | None
    high: float | None
    verdict: Verdict


def trends(files: Sequence[str], matches: Sequence[Match], min_effect: float) -> tuple[Trend, ...]:
    """The trend of each combination; the first file is the base."""
    times: dict[Combination, dict[str, float]] = {}
    for each in matches:
        if each.base.step_ms and each.new.step_ms:
            found = times.setdefault(each.combination, {files[0]: geometric_mean(each.base.step_ms)})
            found[each.file] = geometric_mean(each.new.step_ms)
    lines = {combination: tuple(found.get(file) for file in files) for combination, found in times.items()}
    fits = {combination: fit(step_ms) for combination, step_ms in lines.items()}
    sound = {combination: each for combination, each in fits.items() if each.freedom > 0}
    judged = dict(zip(sound, judge(list(sound.values()), math.log1p(min_effect)), strict=True))
    words: dict[str, Verdict] = {"more": "slower", "less": "faster", "same": "same", "unclear": "unclear"}
    result = []
    for combination, step_ms in lines.items():
        found_out = judged.get(combination)
        result.append(
            Trend(
                combination=combination,
                step_ms=step_ms,
                change=math.exp(fits[combination].estimate),
                low=math.exp(found_out.low) if found_out else None,
                high=math.exp(found_out.high) if found_out else None,
                verdict=words[found_out.verdict] if found_out else "unclear",
            )
        )
    return tuple(result)


def fit(step_ms: Sequence[float | None]) -> Difference:
    """The change over all files, from the least-squares line through the logarithms of the times."""
    points = [(index, math.log(value)) for index, value in enumerate(step_ms) if value is not None]
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    freedom = count - 2
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    deviation = max(math.sqrt(rest / freedom), FLOOR_SPREAD) if freedom else FLOOR_SPREAD
    length = points[-1][0] - points[0][0]
    return Difference(slope * length, deviation / math.sqrt(spread) * length, freedom)


def geometric_mean(values: Sequence[float]) -> float:
    """The exponential of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))
