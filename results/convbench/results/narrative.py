"""A run in words: who is fastest where, by how much, how sure that is, and what is missing.

The fastest is picked after the race, so its lead is judged as one of all the pairs there are (Bonferroni): the
first of ten equals is ahead of the last by more than two equals ever are. The rest is as in `verdicts`:
processes are the sampling unit, and a difference has to be significant and to matter.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from convbench.results.contents import Contents
from convbench.results.schema import MEASURED, Row
from convbench.results.statistics import ratio_interval
from convbench.results.summary import BASELINE, Group, Line, measured, step_samples
from convbench.results.tables import number, share
from convbench.results.verdicts import ALPHA, CONFIDENCE, MIN_EFFECT, MIN_POINTS, log_difference


@dataclass(frozen=True)
class Finding:
    """What is to be said of one race."""

    title: str
    sentences: tuple[str, ...]
    winner: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(self.sentences)


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
    fates = [f"{ended[status]} {status}" for status in sorted(ended, key=lambda each: -ended[each])]
    said = [
        f"{count(len(rows), 'process', 'processes')} for {count(len(combinations), 'combination')} of "
        f"{listed(sizes[:2])} {sizes[2]}: {', '.join(fates)}."
    ]
    lost = combinations - {row.combination for row in rows if row.status in MEASURED and row.kind != "verify"}
    attempted = {row.combination for row in rows if row.kind != "verify"}
    if missing := lost & attempted:
        said.append(f"{count(len(missing), 'combination')} could not be measured.")
    if superseded := len(contents.rows) - len(rows):
        said.append(f"{count(superseded, 'earlier attempt')} of the same processes do not count.")
    return said


def victories(findings: Sequence[Finding]) -> str:
    """Who won how many races, where there are several."""
    won = Counter(finding.winner for finding in findings if finding.winner)
    if len(findings) < 3 or not won:
        return ""
    ranks = [f"{name} in {number_of}" for name, number_of in won.most_common()]
    undecided = len(findings) - sum(won.values())
    rest = f"; {undecided} without a clear winner" if undecided else ""
    return f"Clearly fastest: {listed(ranks[:6])} of {len(findings)} comparisons{rest}."


def findings(contents: Contents) -> list[Finding]:
    """What is to be said of each race."""
    rows: dict[tuple[object, str], list[Row]] = defaultdict(list)
    for row in contents.table.rows:
        where = (row.device, row.dtype, row.batch_size, row.memory_format, row.mode)
        rows[(where, row.architecture), row.backend].append(row)
    sizes = [len(timed_lines(group)) for group in contents.table.groups]
    pairs = sum(size * (size - 1) // 2 for size in sizes)
    return [
        finding(group, {line.name: rows_of(rows, group, line) for line in group.lines}, contents, pairs)
        for group in contents.table.groups
    ]


def rows_of(
    rows: dict[tuple[object, str], list[Row]], group: Group, line: Line
) -> list[Row]:
    """The rows behind one line."""
    race = group.race
    where = (race.device, race.dtype, race.batch_size, race.memory_format, race.mode)
    shared, own = (race.shared, line.name) if group.subject == "backend" else (line.name, race.shared)
    return rows.get(((where, shared), own), [])


def timed_lines(group: Group) -> list[Line]:
    """The lines that were timed, the fastest first."""
    return sorted(
        (line for line in group.lines if line.processes and line.step_ms and line.step_ms > 0),
        key=lambda line: line.step_ms or 0.0,
    )


def finding(group: Group, rows: dict[str, list[Row]], contents: Contents, pairs: int) -> Finding:
    """Everything about one race."""
    winner, said = speed(group, rows, contents, pairs)
    said += accuracy(group)
    return Finding(group.race.title, tuple(said), winner)


def speed(
    group: Group, rows: dict[str, list[Row]], contents: Contents, pairs: int
) -> tuple[str | None, list[str]]:
    """Who is clearly fastest, if anybody, and the sentences about speed."""
    timed = timed_lines(group)
    if not timed:
        return None, untimed(group)
    first, *others = timed
    what = f"{number(first.images_per_second)} images/s, {number(first.step_ms)} ms a step"
    if not others:
        return None, [f"Only {first.name} was timed: {what}."]
    if group.subject == "backend" and nothing_to_serve(rows):
        slowest = f"{number(others[-1].images_per_second)} to {number(first.images_per_second)} images/s"
        return None, [
            f"No layer of {group.race.shared} uses an op that backends implement, so all of them ran torch's "
            f"code: their differences ({slowest}) are noise or overhead."
        ]
    standings = {other.name: standing(rows[first.name], rows[other.name], pairs) for other in others}
    tied = [other.name for other in others if standings[other.name] != "behind"]
    leads = {other.name: lead(first, other, rows, contents) for other in others}
    said = []
    if not tied:
        said.append(f"{first.name} is clearly fastest: {what}, {leads[others[0].name]}, the next.")
    else:
        equal = all(standings[name] == "same" for name in tied)
        verdict = (
            f"are equally fast, to within {MIN_EFFECT:.0%}" if equal else "cannot be told apart by this data"
        )
        said.append(f"{first.name} came out first, with {what}; but it and {listed(tied[:4])} {verdict}.")
    named = {others[0].name if not tied else ""}
    for other in others:
        if other.name in named or (other.name != BASELINE and other is not others[-1]):
            continue
        role = "the slowest" if other is others[-1] else "the baseline"
        sure = "" if standings[other.name] == "behind" else ", though that is not certain"
        said.append(f"It is {leads[other.name]}, {role}{sure}.")
    said.append(certainty([first, *others]))
    for line in timed:
        served = line.served_flops_fraction
        if served is not None and served < 0.995 and (line is first or line.name in tied):
            said.append(f"Of {line.name}, mind that it computed {share(served)} of the FLOPs; torch did the rest.")
    return (None if tied else first.name), said


def untimed(group: Group) -> list[str]:
    """What to say where no step was timed."""
    trained = [line for line in group.lines if line.images_per_second is not None]
    if not trained:
        return ["Nothing was timed here."]
    best = trained[0]
    return [
        f"No steps were timed; in training, {best.name} had the highest throughput, "
        f"{number(best.images_per_second)} images/s, of one process."
    ]


def nothing_to_serve(rows: dict[str, list[Row]]) -> bool:
    """Whether verification found no op in the network that a backend could serve."""
    verified = [row for own in rows.values() for row in own if row.kind == "verify" and row.status == "ok"]
    return bool(verified) and not any(row.served or row.served_calls for row in verified)


def standing(first: Sequence[Row], other: Sequence[Row], pairs: int) -> Literal["behind", "same", "unclear"]:
    """How sure it is that another one is slower than the first."""
    sides = [
        [row.step_ms_median for row in measured(rows, "time") if row.step_ms_median and row.step_ms_median > 0]
        for rows in (first, other)
    ]
    if not all(sides):
        return "unclear"
    gap = log_difference(sides[0], sides[1])
    matters = math.log1p(MIN_EFFECT)
    if gap.p_value * pairs < ALPHA and gap.estimate > matters:
        return "behind"
    reach = abs(gap.estimate) + gap.margin(1 - CONFIDENCE)
    return "same" if reach < matters and not gap.assumed else "unclear"


def lead(first: Line, other: Line, rows: dict[str, list[Row]], contents: Contents) -> str:
    """By how much one is ahead, with the interval of that where its processes give one."""
    ahead = (other.step_ms or 0.0) / (first.step_ms or 1.0)
    sides = [step_samples(measured(rows[each.name], "time"), contents.samples) for each in (other, first)]
    interval = ratio_interval(sides[0], sides[1])  # of first / other, so that the ratio is turned over
    if interval is not None and interval.low > 0:
        span = f" (95 % interval {times(1 / interval.high)} to {times(1 / interval.low)})"
    else:
        span = ""
    return f"{times(ahead)} times as fast{span} as {other.name}"


def times(ratio: float) -> str:
    """A factor in as many digits as one reads."""
    return f"{ratio:.2f}" if ratio < 10 else number(ratio)


def certainty(lines: Sequence[Line]) -> str:
    """What the judgement rests on."""
    fewest, most = min(line.processes for line in lines), max(line.processes for line in lines)
    if most == 1:
        return "Each was timed in one process, which says nothing of the spread between processes: only gross differences can be told."
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"Each was timed in {span} fresh {'process' if span == '1' else 'processes'}."


def accuracy(group: Group) -> list[str]:
    """Where training ended."""
    reached = [(line.name, line.accuracy) for line in group.lines if line.accuracy]
    reached = [(name, each) for name, each in reached if math.isfinite(each.mean)]
    if not reached:
        return []
    is_loss = all(each.is_loss for _, each in reached)
    reached = [(name, each) for name, each in reached if each.is_loss == is_loss]
    reached.sort(key=lambda pair: pair[1].mean if is_loss else -pair[1].mean)
    what = "validation loss" if is_loss else "validation accuracy"
    best, worst = reached[0], reached[-1]
    cut = sum(each.budgeted for _, each in reached)
    close = abs(best[1].mean - worst[1].mean) <= (1e-3 * abs(best[1].mean) if is_loss else MIN_POINTS)
    if len(reached) == 1:
        said = f"{best[0]} reached a {what} of {best[1].mean:.3f}"
    elif close:
        said = f"All reached the same {what}, {best[1].mean:.3f}" + "" * is_loss
        said += "" if is_loss else f", to within {MIN_POINTS:.0%}"
    else:
        said = f"Training ended at a {what} from {best[1].mean:.3f} ({best[0]}) to {worst[1].mean:.3f} ({worst[0]})"
    if cut == len(reached):
        tail = "but every training was cut by its budget, so none of this is final" if cut > 1 else "when its budget ended"
        return [f"{said}; {tail}." if cut > 1 else f"{said} {tail}."]
    soonest = quickest([pair for pair in reached if not pair[1].budgeted]) if close else ""
    note = f" {count(cut, 'training')} cut by the budget counts with what it had reached." if cut == 1 else ""
    note = f" {cut} trainings, cut by their budget, count with what they had reached." if cut > 1 else note
    return [f"{said}{soonest}.{note}"]


def quickest(reached: Sequence[tuple[str, object]]) -> str:
    """Who trained in the shortest time, of those that were not cut."""
    seconds = [(getattr(each, "seconds", None), name) for name, each in reached]
    known = sorted((value, name) for value, name in seconds if value is not None)
    if len(known) < 2:
        return ""
    return f"; {known[0][1]} took the shortest time, {number(known[0][0])} s, {known[-1][1]} the longest, {number(known[-1][0])} s"


def count(amount: int, noun: str, plural: str = "") -> str:
    """A number of things."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def some(names: set[str], noun: str) -> str:
    """One thing by its name, several by their number."""
    return next(iter(names)) if len(names) == 1 else count(len(names), noun)


def listed(words: Sequence[str]) -> str:
    """Words as a list of a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


