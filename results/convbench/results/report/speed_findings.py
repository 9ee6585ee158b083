"""How fast the competitors of one race were, in words."""

from __future__ import annotations

from collections.abc import Sequence

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.coverage import left_to_torch
from convbench.results.analysis.significance import MIN_EFFECT, time_ratio
from convbench.results.analysis.standings import (
    BASELINE,
    Group,
    Line,
    Standing,
    nothing_to_serve,
    step_ms_by_process,
)
from convbench.results.analysis.statistics import Interval
from convbench.results.wording import listed, number, share, times

NAMED = 4  # of those that may be as fast as the first


def winner(standing: Standing, contents: Contents) -> str | None:
    """The competitor that is shown to be faster than all others."""
    decided = (
        len(standing.timed) > 1 and not standing.tied and not nothing_to_serve(standing.group, contents.table)
    )
    return standing.timed[0].name if decided else None


def speed(standing: Standing, contents: Contents) -> list[str]:
    """Who is fastest, by how much, and how sure that is; the first sentence says most."""
    group = standing.group
    if not standing.timed:
        return [*untimed(standing), *not_ranked(standing)]
    first, *others = standing.timed
    what = f"{number(first.images_per_second)} images/s, {number(first.step_ms)} ms a step"
    if not others:
        only = f"Only {first.name} was timed"
        if standing.unranked:
            only = f"Of those that were timed, only {first.name} left no convolution to torch"
        return [f"{only}: {what}.", *not_ranked(standing)]
    if nothing_to_serve(group, contents.table):
        span = f"{number(others[-1].images_per_second)} to {number(first.images_per_second)} images/s"
        return [
            f"No layer of {group.conditions.shared} uses an op that backends implement: all of them ran "
            f"torch's code, and their differences ({span}) are noise or overhead."
        ]
    said = [ranked(standing, what)]
    if not standing.tied:
        said.append(f"It is {lead(standing, others[0], contents)}, the next.")
    baseline = next((line for line in others if line.name == BASELINE), None)
    if baseline is not None and baseline not in (others[0], others[-1]):
        said.append(f"It is {lead(standing, baseline, contents)}, the baseline{doubt(standing, baseline)}.")
    if len(others) > 1 or standing.tied:
        said.append(
            f"It is {lead(standing, others[-1], contents)}, the slowest{doubt(standing, others[-1])}."
        )
    return [*said, certainty(standing.timed), *partly_served(standing), *not_ranked(standing)]


def ranked(standing: Standing, what: str) -> str:
    """Who came out first, and who may be as fast."""
    first, tied = standing.timed[0].name, [line.name for line in standing.tied]
    if not tied:
        return f"{first} is clearly fastest: {what}."
    rest = [f"{len(tied) - NAMED} more"] if len(tied) > NAMED else []
    names = listed([*tied[:NAMED], *rest])
    if all(standing.verdicts[name] == "same" for name in tied):
        return f"{first} and {names} are equally fast, to within {MIN_EFFECT:.0%}: {what}."
    return f"{first} came out first, with {what}, but this data cannot tell it from {names}."


def doubt(standing: Standing, line: Line) -> str:
    """What to add to a lead that is not sure."""
    return "" if standing.verdicts[line.name] == "behind" else ", which is not certain"


def lead(standing: Standing, other: Line, contents: Contents) -> str:
    """By how much the first is ahead of another, with the interval of that where processes give one."""
    first = standing.timed[0]
    ahead = (other.step_ms or 0.0) / (first.step_ms or 1.0)
    interval = lead_interval(standing.group, first, other, contents)
    span = f" (95 % interval {times(interval.low)} to {times(interval.high)})" if interval else ""
    return f"{times(ahead)} times as fast{span} as {other.name}"


def lead_interval(group: Group, first: Line, other: Line, contents: Contents) -> Interval | None:
    """The interval of a lead, the table's own where the table has it."""
    if other.name == BASELINE and group.subject == "backend":
        return first.ratio_interval
    if first.name == BASELINE and group.subject == "backend":
        behind = other.ratio_interval
        return Interval(1 / behind.value, 1 / behind.high, 1 / behind.low) if behind else None
    return time_ratio(
        *(step_ms_by_process(contents.table.rows_of(group, each.name)) for each in (first, other))
    )


def certainty(timed: Sequence[Line]) -> str:
    """What the judgement rests on."""
    fewest, most = min(line.processes for line in timed), max(line.processes for line in timed)
    if most == 1:
        return (
            "Each was timed in one process, which says nothing of the spread between processes: only gross "
            "differences can be told."
        )
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"Each was timed in {span} fresh processes."


def partly_served(standing: Standing) -> list[str]:
    """Which of the fastest left a good part of the work to torch."""
    return [
        f"Mind that {line.name} computed {share(line.served_flops_fraction)} of the FLOPs; torch did the rest."
        for line in [standing.timed[0], *standing.tied][:NAMED]
        if line.served_flops_fraction is not None and line.served_flops_fraction < 0.995
    ]


def not_ranked(standing: Standing) -> list[str]:
    """Who was timed and cannot win, because torch did a part of the convolutions."""
    if not standing.unranked:
        return []
    speeds = [
        f"{line.name} ({number(line.images_per_second)} images/s; torch computed "
        f"{' and '.join(left_to_torch(line.attribution))})"
        for line in standing.unranked[:NAMED]
    ]
    more = len(standing.unranked) - NAMED
    return [f"Not ranked, for they left work to torch: {listed([*speeds, *[f'{more} more'] * (more > 0)])}."]


def untimed(standing: Standing) -> list[str]:
    """What to say where no step was timed of a competitor that is ranked."""
    group = standing.group
    if standing.unranked:
        return ["None of those that were timed is ranked."]
    trained = [line for line in group.lines if line.images_per_second is not None and line.ranked]
    if not trained:
        return ["Nothing was timed here."]
    best = trained[0]
    return [
        f"No steps were timed; in training, {best.name} had the highest throughput, "
        f"{number(best.images_per_second)} images/s, of one process."
    ]
