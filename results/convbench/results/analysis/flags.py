"""What makes the times of a process doubtful: the flags that were raised while it ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from convbench.results.schema import Row
from convbench.results.wording import count, listed

FLAGS = {
    "busy": "while other programs were running",
    "throttled": "while the device or the process was slowed down",
    "drifting": "with steps that became slower or faster",
}
NAMED = 4  # competitors


def flags_of(row: Row) -> list[str]:
    """The flags of one process; a verification's speed is nobody's concern."""
    return [] if row.kind == "verify" else list(dict.fromkeys((row.flags or "").split()))


def flag_counts(rows: Iterable[Row]) -> str:
    """The flags of the processes that timed or trained, each with how many it struck."""
    processes = [row for row in rows if row.kind != "verify"]
    found = Counter(flag for row in processes for flag in flags_of(row))
    return ", ".join(f"{flag} ({struck} of {len(processes)})" for flag, struck in found.most_common())


def flags_in_words(rows: Sequence[Row]) -> list[str]:
    """Which flags were raised, what they mean, and whom they struck; nothing where there are none."""
    struck: dict[str, list[Row]] = {}
    for row in rows:
        for flag in flags_of(row):
            struck.setdefault(flag, []).append(row)
    said = []
    for flag, processes in struck.items():
        names = list(dict.fromkeys(f"{row.architecture} with {row.backend}" for row in processes))
        rest = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        said.append(
            f"{count(len(processes), 'process', 'processes')} of {len(rows)} ran "
            f"{FLAGS.get(flag, 'under a flag of another version')} ({flag}), so their times are doubtful: "
            f"{listed([*names[:NAMED], *rest])}."
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
