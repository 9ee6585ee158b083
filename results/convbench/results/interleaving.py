"""Says whether two sides were measured side by side: a machine drifts between runs by more than within one."""

from __future__ import annotations

from datetime import timedelta

from convbench.results.phrasing import count
from convbench.results.sides import Side


def apart(base: Side, new: Side) -> str:
    """How far two sides that were not interleaved lie apart in time; nothing where they were, or nobody knows."""
    if base.period is None or new.period is None:
        return ""
    (_, earlier_end), (later_start, _) = sorted([base.period, new.period])
    who = f"{new.name} and {base.name} are not interleaved"
    if later_start > earlier_end:
        return f"{who}: measured {duration(later_start - earlier_end)} apart"
    return "" if base.runs & new.runs else f"{who}: measured at the same time by runs that took no turns"


def duration(gap: timedelta) -> str:
    """A time in minutes, a long one in hours or days."""
    minutes = gap.total_seconds() / 60
    for unit, size in (("day", 24 * 60), ("hour", 60)):
        if minutes >= 2 * size:
            return count(round(minutes / size), unit)
    return count(round(minutes), "minute") if minutes >= 1 else "less than a minute"
