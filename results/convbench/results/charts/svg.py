"""Elements of a chart as SVG; texts and attributes are escaped by `element`, and nothing else makes markup."""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from convbench.results.charts.scales import Scale

WIDTH = 360  # of every canvas, in its own units: as wide as a phone
RIGHT = WIDTH - 12
AXIS = 40  # height of the horizontal axis
LETTER = 7.2  # width of a letter, on average
LONGEST = 16  # letters of a name
COLOURS = 10  # then the dashes change
MARKS = (  # two colours that some eyes confuse never share a mark: circle, square, diamond, triangles
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-5L5 0L0 5L-5 0z",
    "M0-4.8L4.6 3.4H-4.6z",
    "M0 4.8L4.6-3.4H-4.6z",
)


def element(tag: str, *content: str, **attributes: str | float) -> Markup:
    """An SVG element; an underscore in an attribute's name stands for a hyphen."""
    written = [
        f' {name.rstrip("_").replace("_", "-")}="'
        f'{format(value, ".4g") if isinstance(value, (int, float)) else escape(value)}"'
        for name, value in attributes.items()
    ]
    return Markup(f"<{tag}{''.join(written)}>{''.join(map(escape, content))}</{tag}>")


def text(
    x: float, y: float, content: str, anchor: str = "start", class_: str = "", longest: int = LONGEST + 12
) -> Markup:
    """A word of a chart, shortened if it is long; its whole is shown on hovering."""
    shown = shortened(content, longest)
    whole = [element("title", content)] if shown != content else []
    return element("text", shown, *whole, x=x, y=y, text_anchor=anchor, class_=class_)


def shortened(name: str, longest: int) -> str:
    """A name with its middle left out, for long names are told apart by how they begin and end."""
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"


def path(points: Iterable[tuple[float, float]], class_: str, title: str = "") -> Markup:
    """A line through points."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", *([element("title", title)] if title else []), d=d, class_=class_)


def mark(index: int, x: float, y: float, title: str = "") -> Markup:
    """A value of a competitor, in its colour and its shape; `title` tells it, to pointers and to the keyboard."""
    return element(
        "path",
        *([element("title", title)] if title else []),
        d=MARKS[index % len(MARKS)],
        transform=f"translate({x:.1f} {y:.1f})",
        class_=f"{'point ' * bool(title)}dot {hue(index)}",
    )


def hue(index: int) -> str:
    """The classes that colour a competitor; beyond the colours, dashes tell them apart."""
    return f"h{index % COLOURS} d{index // COLOURS % 3}"


def grid(x: Scale, bottom: float, label: str, top: float = 0) -> list[Markup]:
    """Lines at the ticks of the horizontal axis, their texts, and what it measures."""
    parts = []
    taken = -math.inf
    for value, word in x.ticks(4):
        at, half = x(value), LETTER * len(word) / 2
        parts.append(path([(at, top), (at, bottom)], "grid"))
        if at - half > taken and at + half <= WIDTH:
            parts.append(text(at, bottom + 15, word, "middle", "tick"))
            taken = at + half + 4
    return [*parts, element("text", label, x=RIGHT, y=bottom + 33, text_anchor="end", class_="label")]
