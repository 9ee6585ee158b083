"""Tells whether a ratio of times differs between kinds of machines: models of the processor or accelerator.

The machines of a cluster may differ, and a backend that is faster on one kind may be slower on another. A ratio
over all of them then holds on none. Ratios are compared between each two kinds with Welch's t test of their
logarithms, one for each block. A line differs if the p-value, corrected by Holm for all lines and kinds that are
judged together, is below ALPHA, and the difference exceeds the smallest that matters, as in `significance`.
A kind with two blocks takes a part of its variance from the other lines of its comparison group, as there. One
block shows no spread, so that a kind with one is not compared: a disturbed process would look like another kind.
Machines of one kind are taken to be alike.

False alarms among equals, `tests/results/analysis/test_machine_kinds.py`: in at most 2 % of tables of 1 to 30
lines for normal, skewed and heavy-tailed spreads of 2 to 6 blocks a kind, and in 5 % where one kind is much
noisier. Two modes far apart defeat three blocks here as they do there.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from convbench.results.analysis.significance import (
    FLOOR_SPREAD,
    Scatter,
    Times,
    difference,
    judge,
    variance,
)
from convbench.results.schema import Row


@dataclass(frozen=True)
class ByKind:
    """A line of a comparison group: the logarithm of the ratio in each block, by kind of machine."""

    group: Hashable
    logs: Mapping[str, Sequence[float]]


def by_kind(group: Hashable, sides: Mapping[str, tuple[Times, Times]]) -> ByKind:
    """The line of two sides, base and new, whose times are given by kind, from the blocks of both."""
    logs = {
        kind: [math.log(new[block] / base[block]) for block in base if block in new]
        for kind, (base, new) in sides.items()
    }
    return ByKind(group, {kind: values for kind, values in logs.items() if len(values) > 1})


def differing(lines: Sequence[ByKind], matters: float) -> list[bool]:
    """Of each line whether its ratios differ between kinds by more than `matters`; all are judged together."""
    spreads: dict[Hashable, list[Sequence[float]]] = defaultdict(list)
    for line in lines:
        spreads[line.group] += line.logs.values()
    gaps = []
    for at, line in enumerate(lines):
        several = spreads[line.group]
        freedom = [len(values) - 1 for values in several]
        squares = sum(variance(values) * own for values, own in zip(several, freedom, strict=True))
        for one, other in combinations(line.logs.values(), 2):
            gap = difference(one, other, FLOOR_SPREAD, None, Scatter(squares, sum(freedom)))
            assert gap is not None  # both have two blocks
            gaps.append((at, gap))
    judged = zip(gaps, judge([gap for _, gap in gaps], matters), strict=True)
    differ = {at for (at, _), each in judged if each.verdict in ("more", "less")}
    return [at in differ for at in range(len(lines))]


def kinds_in(rows: Iterable[Row]) -> list[str]:
    """The models of the machines that rows come from."""
    return sorted({row.device_name for row in rows if row.device_name})


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of one kind of machine, and those that no machine measured."""
    return [row for row in rows if row.device_name in (kind, None)]


def machines_in_words(models: Mapping[Hashable, str]) -> str:
    """`4 machines (3 with one model, 1 with another)`, from the model of each; empty for fewer than two."""
    if len(models) < 2:
        return ""
    kinds = ", ".join(f"{number} with {model}" for model, number in Counter(models.values()).most_common())
    return f"{len(models)} machines ({kinds})"
