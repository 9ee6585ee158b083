"""A comparison in words: how many became slower or faster, by how much, and what nobody can tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from convbench.results.analysis.significance import effect
from convbench.results.comparison.compare import Comparison, TimePair
from convbench.results.comparison.history import Trend
from convbench.results.comparison.pairing import name
from convbench.results.wording import count, listed


def verdicts_in_words(comparison: Comparison) -> list[str]:
    """The outcome, in sentences."""
    base, *others = comparison.files
    said = [f"{listed(others)} against {base}."]
    for pairs, what in ((comparison.times, "step time"), (comparison.accuracies, "accuracy")):
        if pairs:
            counted = Counter(pair.verdict for pair in pairs)
            verdicts = [f"{number} {verdict}" for verdict, number in counted.most_common()]
            said.append(f"{count(len(pairs), 'pair')} of {what}: {listed(verdicts)}.")
    slower = [pair for pair in comparison.times if pair.verdict == "slower"]
    faster = [pair for pair in comparison.times if pair.verdict == "faster"]
    if slower:
        said.append(f"The largest slow-down: {largest(max(slower, key=lambda pair: pair.ratio))}.")
    if faster:
        said.append(f"The largest gain: {largest(min(faster, key=lambda pair: pair.ratio))}.")
    if not slower and not faster and comparison.times:
        said.append("No step time is shown to have changed.")
    said += blind(comparison.times)
    said += fallen(comparison.times)
    said += levels(comparison.trends)
    if comparison.left_out:
        lost = sum(left.lost for left in comparison.left_out)
        rest = f", {lost} of them because the new side could not measure what the base had" if lost else ""
        said.append(f"{count(len(comparison.left_out), 'combination')} could not be compared{rest}.")
    return said


def largest(pair: TimePair) -> str:
    """A pair with its change."""
    interval = f"95 % interval {pair.low:.3f} to {pair.high:.3f}"
    return f"{name(pair.combination)}, {size(pair.ratio)} (ratio {pair.ratio:.3f}, {interval})"


def size(ratio: float) -> str:
    """How much slower or faster that is."""
    return f"{effect(ratio)} slower" if ratio > 1 else f"{1 - ratio:.1%} less time"


def fallen(pairs: Sequence[TimePair]) -> list[str]:
    """Where a time is no longer the backend's own."""
    left = [name(pair.combination) for pair in pairs if pair.served_less]
    if not left:
        return []
    others = f", and likewise in {count(len(left) - 1, 'other pair')}" if len(left) > 1 else ""
    return [
        f"The backend left to torch what it computed in the base: {left[0]}{others}. That time is not its own."
    ]


def levels(trends: Sequence[Trend]) -> list[str]:
    """Where histories changed their level: how many did, and the largest change."""
    changed = [(trend, change) for trend in trends for change in trend.changes]
    if not changed:
        return []
    trend, change = max(changed, key=lambda each: abs(math.log(each[1].ratio)))
    whose = len({id(trend) for trend, _ in changed})
    return [
        f"The level of the step time changed in {whose} of {count(len(trends), 'history', 'histories')}, most in "
        f"{name(trend.combination)}: from {change.file} on, {size(change.ratio)} (ratio {change.ratio:.3f})."
    ]


def blind(pairs: Sequence[TimePair]) -> list[str]:
    """What the data could not have shown."""
    unclear = [pair for pair in pairs if pair.verdict == "unclear"]
    if not unclear:
        return []
    sizes = sorted(pair.detectable for pair in unclear)
    least, most = effect(sizes[0]), effect(sizes[-1])
    if least == most:
        said = f"Where it is unclear, only a difference of {least} or more would have shown"
    else:
        said = f"Where it is unclear, the smallest difference that would have shown is {least} to {most}"
    return [f"{said}: more processes show smaller ones."]
