"""Durations: parse `5m` and `1h30m`, format `2 min 5 s`."""

from __future__ import annotations

import math
import re

from convbench.registry import UsageError

SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def seconds_of(text: str) -> float:
    """The seconds of `300`, `300s`, `5m`, `1.5h` or `1h30m`; raises UsageError for other texts."""
    word = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", word):
        return float(word)
    if not word or not re.fullmatch(r"(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?", word):
        raise UsageError(f"{text!r} is not a duration; write it like 90s, 5m or 1h30m")
    parts = re.findall(r"([\d.]+)([hms])", word)
    return sum(float(number) * SECONDS[unit] for number, unit in parts)


def span(seconds: float) -> str:
    """`45 s`, `2 min 5 s`, `25 min`, `3.4 h`, `2 days`: rounded to what a reader needs."""
    if not math.isfinite(seconds):
        return "for ever"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600 and whole % 60:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 3600:
        return f"{round(whole / 60)} min"
    if whole < 48 * 3600:
        return f"{seconds / 3600:.2g} h"
    return f"{seconds / 86400:.3g} days"


def clock(seconds: float) -> str:
    """`0:45`, `12:05`, `1:02:05`: an elapsed time."""
    whole = max(0, int(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
