"""What makes the times of a process doubtful: the flags that were raised while it ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from convbench.results.analysis.summary import FLAGS
from convbench.results.comparison.sides import Measured
from convbench.results.report.phrasing import count, listed
from convbench.results.schema import Row

NAMED = 4  # competitors


def flags_of(row: Row) -> list[str]:
    """The flags of one process; a verification's speed is nobody's concern."""
    return [] if row.kind == "verify" else list(dict.fromkeys((row.flags or "").split()))


def flag_counts(rows: Iterable[Row]) -> str:
    """The flags of the processes that timed or trained, each with how many it struck."""
    processes = [row for row in rows if row.kind != "verify"]
    found = Counter(flag for row in processes for flag in flags_of(row))
    return ", ".join(f"{flag} ({struck} of {len(processes)})" for flag, struck in found.most_common())


def flags_of_both(base: Measured, new: Measured) -> str:
    """How many processes of either side of a pair each flag struck; a warning where the sides are not alike."""
    counts = [len(side.step_ms) for side in (base, new)]
    struck = {flag: [side.flags.get(flag, 0) for side in (base, new)] for flag in {**base.flags, **new.flags}}
    listing = ", ".join(
        f"{flag} in {old} of {counts[0]} processes of the base and {fresh} of {counts[1]} of the new"
        for flag, (old, fresh) in struck.items()
    )
    unlike = any(old * counts[1] != fresh * counts[0] for old, fresh in struck.values())
    return f"flagged {'unlike' if unlike else 'alike'}: {listing}" if struck else ""


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
            f"{FLAGS.get(flag, 'under a flag of another version')} ({flag}), so these times are to be doubted: "
            f"{listed([*names[:NAMED], *rest])}."
        )
    return said
