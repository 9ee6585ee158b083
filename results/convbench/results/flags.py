"""What makes the times of a process doubtful: the flags that were raised while it ran."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from convbench.results.phrasing import count, listed
from convbench.results.schema import Row

MEANINGS: Mapping[str, str] = {
    "busy": "other programs or a hypervisor took processor time",
    "throttled": "the processor was slowed for its heat or its quota",
    "drifting": "steps became slower or faster while they were timed",
}
NAMED = 4  # competitors


def flags_of(row: Row) -> list[str]:
    """The flags of one process."""
    return [flag for flag in re.split(r"[\s,;|]+", getattr(row, "flags", None) or "") if flag]


def flagged(rows: Iterable[Row]) -> str:
    """The flags of several processes that timed or trained, each with how many it struck."""
    processes = [row for row in rows if row.kind != "verify"]
    found = Counter(flag for row in processes for flag in dict.fromkeys(flags_of(row)))
    return ", ".join(f"{flag} ({struck} of {len(processes)})" for flag, struck in found.most_common())


def flags_in_words(rows: Sequence[Row]) -> list[str]:
    """Which flags were raised, what they mean, and whom they struck; nothing where there are none."""
    struck: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "verify":
            continue
        for flag in dict.fromkeys(flags_of(row)):
            struck.setdefault(flag, []).append(row)
    said = []
    for flag, processes in struck.items():
        names = list(dict.fromkeys(f"{row.architecture} with {row.backend}" for row in processes))
        rest = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        meaning = f" ({MEANINGS[flag]})" if flag in MEANINGS else ""
        said.append(
            f"{count(len(processes), 'process was', 'processes were')} flagged {flag}{meaning}, so their times "
            f"are to be doubted: {listed([*names[:NAMED], *rest])}."
        )
    return said
