"""A run in words: who is fastest where, by how much, how sure that is, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.standings import standings
from convbench.results.report.speed_findings import speed, winner
from convbench.results.report.training_findings import accuracy
from convbench.results.schema import Status
from convbench.results.wording import count, listed, some

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
    """What is to be said of one race, the most important first."""

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
    return [
        Finding(
            title=standing.group.conditions.title,
            sentences=(*speed(standing, contents), *accuracy(standing.group)),
            winner=winner(standing, contents),
        )
        for standing in standings(contents.table)
    ]
