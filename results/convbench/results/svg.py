"""Elements of a chart as SVG; texts and attributes are escaped by `element`, and nothing else makes markup."""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from convbench.results.scales import Scale

WIDTH = 360  # of every canvas, in its own units: as wide as a phone
RIGHT = WIDTH - 12
AXIS = 40  # height of the horizontal axis
LETTER = 7.2  # width of a letter, on average
LONGEST = 16  # letters of a name
COLOURS = 10  # then the dashes change


def element(tag: str, *content: str, **attributes: str | float) -> Markup:
    """An SVG element; an underscore in an attribute's name stands for a hyphen."""
    written = [
        f' {name.rstrip("_").replace("_", "-")}="'
        f'{format(value, ".4g") if isinstance(value, (int, float)) else escape(value)}"'
        for name, value in attributes.items()
    ]
    return Markup(f"<{tag}{''.join(written)}>{''.join(map(escape, content))}</{tag}>")


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> Markup:
    """A word of a chart, shortened if it is long; its whole is shown on hovering."""
    shown = content if len(content) <= LONGEST + 12 else content[: LONGEST + 11] + "…"
    whole = [element("title", content)] if shown != content else []
    return element("text", shown, *whole, x=x, y=y, text_anchor=anchor, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, title: str = "") -> Markup:
    """A line through points."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", *([element("title", title)] if title else []), d=d, class_=class_)


def hue(index: int) -> str:
    """The classes that colour a competitor; beyond the colours, dashes tell them apart."""
    return f"h{index % COLOURS} d{index // COLOURS % 3}"


def grid(x: Scale, bottom: float, label: str) -> list[Markup]:
    """Lines at the ticks of the horizontal axis, their texts, and what it measures."""
    parts = []
    taken = -math.inf
    for value, word in x.ticks(4):
        at, half = x(value), LETTER * len(word) / 2
        parts.append(path([(at, 0), (at, bottom)], "grid"))
        if at - half > taken and at + half <= WIDTH:
            parts.append(text(at, bottom + 15, word, "middle", "tick"))
            taken = at + half + 4
    return [*parts, element("text", label, x=RIGHT, y=bottom + 33, text_anchor="end", class_="label")]
