"""Numbers and names as parts of sentences."""

from __future__ import annotations

EMPTY = "–"  # where there is no value
# C0 and C1 control characters, among them those that begin a terminal's escape sequences; line separators;
# and the marks that turn the direction of a text around (Boucher and Anderson, "Trojan Source", 2021). As the
# inside of a regular expression's set.
UNSEEN = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"


def count(amount: int, noun: str, plural: str = "") -> str:
    """A number of things."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def some(names: set[str], noun: str) -> str:
    """One thing by its name, several by their number."""
    return next(iter(names)) if len(names) == 1 else count(len(names), noun)


def times(ratio: float) -> str:
    """A factor in as many digits as one reads."""
    return f"{ratio:.2f}" if ratio < 10 else number(ratio)


def number(value: float | None) -> str:
    """Three significant digits of a measure, all of an integer part."""
    if value is None:
        return EMPTY
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def share(fraction: float) -> str:
    """Per cent, where 100 % means all of it and nothing less."""
    percent = fraction * 100
    return f"{percent:.0f} %" if percent in (0, 100) else f"{min(percent, 99.9):.1f} %"


def percent(fraction: float) -> str:
    """A share of what is attainable; above 100 % where a peak was measured too low."""
    value = 100 * fraction
    return f"{value:,.0f} %" if value >= 99.95 else f"{value:.1f} %" if value >= 0.95 else f"{value:.2g} %"
