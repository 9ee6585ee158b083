"""The findings of a run or a comparison: what is fastest, by how much, how sure that is, and what is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convbench.registry.errors import listed
from convbench.results.analysis.contents import Contents
from convbench.results.analysis.coverage import left_to_torch
from convbench.results.analysis.roofline import Reached, Roof, reached, roof
from convbench.results.analysis.significance import MIN_EFFECT, MIN_POINTS, effect, time_ratio
from convbench.results.analysis.standings import (
    BASELINE,
    Accuracy,
    Group,
    Line,
    Standing,
    nothing_to_serve,
    standings,
    step_ms_by_process,
)
from convbench.results.analysis.statistics import Interval
from convbench.results.comparison.compare import Comparison, TimePair
from convbench.results.comparison.history import Trend
from convbench.results.comparison.pairing import name
from convbench.results.schema import Status
from convbench.results.wording import count, number, share, some, times

NAMED = 4  # backends in one sentence
SPOKEN = 6  # networks whose roofline gets a sentence
SAME_LOSS = 1e-3  # of the loss: round-off takes trainings of the same weights this far apart
FATES: Mapping[Status, str] = {
    "ok": "ok",
    "budget": "cut by the budget",
    "unsupported": "not supported",
    "oom": "out of memory",
    "timeout": "timed out",
    "error": "ended with an error",
}


@dataclass(frozen=True)
class Finding:
    """The findings of one comparison group, the most important first."""

    title: str
    sentences: tuple[str, ...]
    winner: str | None = None


def overview(contents: Contents) -> list[str]:
    """What was run and what became of it, in sentences."""
    rows = contents.table.rows
    if not rows:
        return ["Nothing was run."]
    combinations = {row.combination for row in rows}
    sizes = [
        some({row.architecture for row in rows}, "architecture"),
        some({row.backend for row in rows}, "backend"),
        f"on {listed(sorted({row.device for row in rows}))}",
    ]
    ended = Counter(row.status for row in rows)
    fates = [f"{number_of:,} {FATES.get(status, status)}" for status, number_of in ended.most_common()]
    said = [
        f"{count(len(rows), 'process', 'processes')} for {count(len(combinations), 'combination')} of "
        f"{listed(sizes[:2])} {sizes[2]}: {', '.join(fates)}."
    ]
    lost = combinations - {row.combination for row in rows if row.is_measured and row.kind != "verify"}
    attempted = {row.combination for row in rows if row.kind != "verify"}
    if missing := lost & attempted:
        said.append(f"{count(len(missing), 'combination')} could not be measured.")
    if superseded := len(contents.rows) - len(rows):
        said.append(f"{count(superseded, 'earlier attempt')} of the same processes do not count.")
    return said


def victories(findings: Sequence[Finding]) -> str:
    """How many comparison groups each backend was fastest in, if there are several."""
    won = Counter(finding.winner for finding in findings if finding.winner)
    if len(findings) < 3 or not won:
        return ""
    ranks = [f"{name} in {number_of}" for name, number_of in won.most_common()]
    undecided = len(findings) - sum(won.values())
    rest = f"; {undecided} without a clear winner" if undecided else ""
    return f"Clearly fastest: {listed(ranks[:6])} of {len(findings)} comparisons{rest}."


def findings(contents: Contents) -> list[Finding]:
    """The findings of each comparison group."""
    return [
        Finding(
            title=standing.group.conditions.title,
            sentences=(*speed(standing), *accuracy(standing.group)),
            winner=winner(standing),
        )
        for standing in standings(contents.table)
    ]


def winner(standing: Standing) -> str | None:
    """The line that is shown to be faster than all others."""
    decided = len(standing.timed) > 1 and not standing.tied and not nothing_to_serve(standing.group)
    return standing.timed[0].name if decided else None


def speed(standing: Standing) -> list[str]:
    """What is fastest, by how much, and how sure that is; the first sentence is the verdict."""
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
    if nothing_to_serve(group):
        span = f"{number(others[-1].images_per_second)} to {number(first.images_per_second)} images/s"
        return [
            f"No layer of {group.conditions.shared} uses an op that backends implement: all of them ran "
            f"torch's code, and their differences ({span}) are noise or overhead."
        ]
    said = [ranked(standing, what)]
    if not standing.tied:
        said.append(f"It is {lead(standing, others[0])}, the next.")
    baseline = next((line for line in others if line.name == BASELINE), None)
    if baseline is not None and baseline not in (others[0], others[-1]):
        said.append(f"It is {lead(standing, baseline)}, the baseline{doubt(standing, baseline)}.")
    if len(others) > 1 or standing.tied:
        said.append(f"It is {lead(standing, others[-1])}, the slowest{doubt(standing, others[-1])}.")
    return [*said, certainty(standing.timed), *partly_served(standing), *not_ranked(standing)]


def ranked(standing: Standing, what: str) -> str:
    """What came out first, and what may be as fast."""
    first, tied = standing.timed[0].name, [line.name for line in standing.tied]
    if not tied:
        return f"{first} is clearly fastest: {what}."
    names = listed(tied, NAMED)
    if all(standing.verdicts[name] == "same" for name in tied):
        return f"{first} and {names} are equally fast, to within {MIN_EFFECT:.0%}: {what}."
    return f"{first} came out first, with {what}, but this data cannot tell it from {names}."


def doubt(standing: Standing, line: Line) -> str:
    """What to add to a lead that is not sure."""
    return "" if standing.verdicts[line.name] == "behind" else ", which is not certain"


def lead(standing: Standing, other: Line) -> str:
    """By how much the first is ahead of another, with the interval of that where processes give one."""
    first = standing.timed[0]
    ahead = (other.step_ms or 0.0) / (first.step_ms or 1.0)
    interval = lead_interval(standing.group, first, other)
    span = f" (95 % interval {times(interval.low)} to {times(interval.high)})" if interval else ""
    return f"{times(ahead)} times as fast{span} as {other.name}"


def lead_interval(group: Group, first: Line, other: Line) -> Interval | None:
    """The interval of a lead, the table's own where the table has it."""
    if other.name == BASELINE and group.subject == "backend":
        return first.speedup_interval
    if first.name == BASELINE and group.subject == "backend":
        behind = other.speedup_interval
        return Interval(1 / behind.value, 1 / behind.high, 1 / behind.low) if behind else None
    return time_ratio(step_ms_by_process(first.rows), step_ms_by_process(other.rows), group.scatter)


def certainty(timed: Sequence[Line]) -> str:
    """What the judgement rests on."""
    numbers = [line.processes or 0 for line in timed]
    fewest, most = min(numbers), max(numbers)
    if most == 1:
        return (
            "Each was timed in one process, which says nothing of the spread between processes: only large "
            "differences are certain."
        )
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"Each was timed in {span} fresh processes."


def partly_served(standing: Standing) -> list[str]:
    """Which of the fastest left a good part of the work to torch."""
    return [
        f"{line.name} computed {share(line.coverage)} of the FLOPs itself; torch computed the rest."
        for line in [standing.timed[0], *standing.tied][:NAMED]
        if line.coverage is not None and line.coverage < 0.995
    ]


def not_ranked(standing: Standing) -> list[str]:
    """What was timed and is not ranked, because torch computed a part of the convolutions."""
    if not standing.unranked:
        return []
    speeds = [
        f"{line.name} ({number(line.images_per_second)} images/s; torch computed "
        f"{' and '.join(left_to_torch(line.attribution))})"
        for line in standing.unranked
    ]
    return [f"Not ranked, because they left work to torch: {listed(speeds, NAMED)}."]


def untimed(standing: Standing) -> list[str]:
    """The sentence for a group in which no ranked line was timed."""
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


def accuracy(group: Group) -> list[str]:
    """What accuracy, or loss, the finished trainings of one group reached, in at most two sentences."""
    known = [(line.name, line.accuracy) for line in group.lines if line.accuracy]
    cut = sum(each.budgeted for _, each in known)
    is_loss = all(each.is_loss for _, each in known)
    ended = [
        (name, each)
        for name, each in known
        if each.is_loss == is_loss and not each.budgeted and math.isfinite(each.mean)
    ]
    ended.sort(key=lambda pair: pair[1].mean if is_loss else -pair[1].mean)
    said = []
    if ended:
        said.append(f"{ends(ended, is_loss)}{quickest(group, ended) if alike(ended, is_loss) else ''}.")
    if cut:
        rest = "so their accuracy is not compared" if ended else "so no accuracy is compared"
        said.append(
            f"The budget ended {cut} of {count(len(known), 'training')} before the last epoch, {rest}."
        )
    return said


def alike(ended: Sequence[tuple[str, Accuracy]], is_loss: bool) -> bool:
    """Whether best and worst are too near to each other to matter."""
    best, worst = ended[0][1].mean, ended[-1][1].mean
    return abs(best - worst) <= (SAME_LOSS * abs(best) if is_loss else MIN_POINTS)


def ends(ended: Sequence[tuple[str, Accuracy]], is_loss: bool) -> str:
    """The best and the worst end."""
    what = "validation loss" if is_loss else "validation accuracy"
    (first, best), (last, worst) = ended[0], ended[-1]
    if len(ended) == 1:
        return f"{first} reached a {what} of {best.mean:.3f}"
    if not alike(ended, is_loss):
        return f"Training ended at a {what} from {best.mean:.3f} ({first}) to {worst.mean:.3f} ({last})"
    within = "" if is_loss else ", to within a percentage point"
    return f"All reached the same {what}, {best.mean:.3f}{within}"


def quickest(group: Group, ended: Sequence[tuple[str, Accuracy]]) -> str:
    """Which ranked line trained in the shortest time, and which in the longest."""
    ranked = {line.name for line in group.lines if line.ranked}
    took = sorted((each.seconds, name) for name, each in ended if each.seconds is not None and name in ranked)
    if len(took) < 2:
        return ""
    (shortest, first), (longest, last) = took[0], took[-1]
    return f"; {first} in the shortest time, {number(shortest)} s, {last} in the longest, {number(longest)} s"


def roofline_findings(contents: Contents) -> list[str]:
    """The peaks, what limits each network, and what came nearest to that limit."""
    places = reached(contents)
    said = []
    for device, dtype in dict.fromkeys(
        (each.group.conditions.device, each.group.conditions.dtype) for each in places
    ):
        limit = roof(contents.environment, device, dtype)
        if limit is None:
            said.append(f"The peaks of {device} with {dtype} were not measured, so it has no roof here.")
            continue
        said.append(
            f"{device} was measured to do at most {number(limit.gflops_per_second)} GFLOP/s in {dtype} and to "
            f"copy {number(limit.gb_per_second)} GB/s: below {limit.ridge:.3g} FLOPs per byte, memory is the "
            f"limit; above, arithmetic."
        )
        here = [each for each in places if each.roof == limit and each.group.conditions.device == device]
        networks = list(dict.fromkeys(each.line.architecture for each in here))
        said += [
            nearest([each for each in here if each.line.architecture == name], limit)
            for name in networks[:SPOKEN]
        ]
        if len(networks) > SPOKEN:
            said.append(f"The chart and the table have {count(len(networks) - SPOKEN, 'more network')}.")
    return said


def nearest(places: Sequence[Reached], limit: Roof) -> str:
    """What limits one network, and what came nearest to it."""
    best = max(places, key=lambda each: (each.line.ranked, each.fraction or 0.0))
    bound = "memory" if best.intensity < limit.ridge else "arithmetic"
    whose = f"{best.line.name} came nearest, with" if best.contested else "all ran torch's code, at best at"
    beyond = "; that is beyond it, for what stays in caches need not be moved" * ((best.fraction or 0) > 1)
    return (
        f"{best.line.architecture} does {best.intensity:.3g} FLOPs per byte, so {bound} limits it to "
        f"{number(limit.attainable(best.intensity))} GFLOP/s; {whose} "
        f"{number(best.gflops_per_second)} GFLOP/s{best.shares}{beyond}."
    )


def comparison_findings(comparison: Comparison) -> list[str]:
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
    said += blind(comparison)
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
    return f"{pair.name}, {size(pair.ratio)} (ratio {pair.ratio:.3f}, {interval})"


def size(ratio: float) -> str:
    """How much slower or faster that is."""
    return f"{effect(ratio)} slower" if ratio > 1 else f"{1 - ratio:.1%} less time"


def fallen(pairs: Sequence[TimePair]) -> list[str]:
    """Where a time is no longer the backend's own."""
    left = [pair.name for pair in pairs if pair.served_less]
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


def blind(comparison: Comparison) -> list[str]:
    """What the data could not have shown, and how many processes would."""
    unclear = [pair for pair in comparison.times if pair.verdict == "unclear"]
    if not unclear:
        return []
    sizes = sorted(pair.detectable for pair in unclear)
    least, most = effect(sizes[0]), effect(sizes[-1])
    if least == most:
        said = f"Where it is unclear, only a difference of {least} or more would have shown"
    else:
        said = f"Where it is unclear, the smallest difference that would have shown is {least} to {most}"
    return [f"{said}; {comparison.advice}."]
