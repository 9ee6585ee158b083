"""Time two pieces of work in turn, so that a drift of the machine hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """What two pieces of work yielded, round by round."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """The median over rounds of ours/theirs."""
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    def record(self, benchmark: Any) -> None:
        """Leave the figures in pytest-benchmark's report."""
        benchmark.extra_info.update(
            ratio=round(self.ratio, 4),
            ours_median=statistics.median(self.ours),
            theirs_median=statistics.median(self.theirs),
            rounds=len(self.ours),
        )
        print(f"\nratio {self.ratio:.4f}, median of {len(self.ours)} interleaved rounds")


def interleave(benchmark: Any, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Pair:
    """Call both in turn, each going first in every other round; each returns its own figure.

    One call of each warms up. pytest-benchmark sees the whole as one round.
    """

    def alternate() -> Pair:
        theirs(), ours()
        pair = Pair([], [])
        sides = [(ours, pair.ours), (theirs, pair.theirs)]
        for _ in range(rounds):
            for work, figures in sides:
                figures.append(work())
            sides.reverse()
        return pair

    pair: Pair = benchmark.pedantic(alternate, rounds=1)
    return pair
