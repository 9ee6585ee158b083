"""Who leads each race of a run, and which of the others are shown to be behind.

Every other competitor is compared with the first, and all of these comparisons of a run are judged together,
as in `verdicts`: processes are the sampling unit, and a difference has to be significant and to matter. That
the first is picked by the very data does no harm: comparisons with the sample's best are as safe as those
with one that is named beforehand (Hsu, "Constrained simultaneous confidence intervals for multiple comparisons
with the best", Annals of Statistics 12, 1984).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from convbench.results.analysis.significance import MIN_EFFECT, Difference, judge, log_difference
from convbench.results.analysis.summary import Group, Line, measured
from convbench.results.schema import Row
from convbench.results.storage.contents import Contents

Verdict = Literal["behind", "same", "unclear"]


@dataclass(frozen=True)
class Standing:
    """One race: its timed lines, the fastest first, and how sure it is that the others are behind the first.

    `unranked` were timed as well, and left convolutions to torch.
    """

    group: Group
    timed: tuple[Line, ...]
    verdicts: Mapping[str, Verdict]
    unranked: tuple[Line, ...] = ()

    @property
    def tied(self) -> list[Line]:
        """Those that may be as fast as the first."""
        return [line for line in self.timed[1:] if self.verdicts[line.name] != "behind"]


def standings(contents: Contents) -> list[Standing]:
    """How each race ended."""
    gaps: dict[tuple[int, str], Difference] = {}
    timed = [timed_lines(group) for group in contents.table.groups]
    for at, (group, lines) in enumerate(zip(contents.table.groups, timed, strict=True)):
        for line in lines[1:]:
            sides = [step_ms(contents.rows_of(group, each.name)) for each in (lines[0], line)]
            gaps[at, line.name] = log_difference(*sides)
    judged = dict(zip(gaps, judge(list(gaps.values()), math.log1p(MIN_EFFECT)), strict=True))
    words: dict[str, Verdict] = {"more": "behind", "same": "same", "less": "unclear", "unclear": "unclear"}
    found: list[dict[str, Verdict]] = [{} for _ in timed]
    for (at, name), each in judged.items():
        found[at][name] = words[each.verdict]
    return [
        Standing(group, tuple(lines), verdicts, tuple(timed_lines(group, ranked=False)))
        for group, lines, verdicts in zip(contents.table.groups, timed, found, strict=True)
    ]


def timed_lines(group: Group, *, ranked: bool = True) -> list[Line]:
    """The lines that were timed and are ranked, or those that are not; the fastest first, as in the table."""
    lines = [line for line in group.lines if line.ranked == ranked]
    return [line for line in lines if line.processes and line.step_ms]


def step_ms(rows: Sequence[Row]) -> list[float]:
    """The median step time of each process that was timed."""
    times = (row.step_ms_median for row in measured(rows, "time"))
    return [value for value in times if value and 0 < value < math.inf]
