"""Flags: what happened while a process ran that makes its times doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from convbench.registry.errors import listed
from convbench.results.schema import Row
from convbench.results.wording import count

FLAGS = {
    "busy": "while other programs were running",
    "throttled": "while the device or the process was slowed down",
    "drifting": "with steps that became slower or faster",
}
NAMED = 4  # competitors


def flags_of(row: Row) -> list[str]:
    """The flags of one process; none of a verification, whose speed is not reported."""
    return [] if row.kind == "verify" else list(dict.fromkeys((row.flags or "").split()))


def flag_counts(rows: Iterable[Row]) -> str:
    """The flags of the processes that timed or trained, each with the number of processes that have it."""
    processes = [row for row in rows if row.kind != "verify"]
    found = Counter(flag for row in processes for flag in flags_of(row))
    return ", ".join(f"{flag} ({struck} of {len(processes)})" for flag, struck in found.most_common())


def flags_in_words(rows: Sequence[Row]) -> list[str]:
    """A sentence for each flag: what it means and which backends have it."""
    struck: dict[str, list[Row]] = {}
    for row in rows:
        for flag in flags_of(row):
            struck.setdefault(flag, []).append(row)
    said = []
    for flag, processes in struck.items():
        names = list(dict.fromkeys(f"{row.architecture} with {row.backend}" for row in processes))
        said.append(
            f"{count(len(processes), 'process', 'processes')} of {len(rows)} ran "
            f"{FLAGS.get(flag, 'under a flag of another version')} ({flag}); treat these times with care: "
            f"{listed(names, NAMED)}."
        )
    return said


def flagged(timed: Sequence[Row]) -> list[str]:
    """How many of the timing processes carry each flag, in a sentence."""
    counts = {flag: sum(flag in (row.flags or "").split() for row in timed) for flag in FLAGS}
    return [
        f"{count} of {len(timed)} processes timed {FLAGS[flag]} ({flag})"
        for flag, count in counts.items()
        if count
    ]
