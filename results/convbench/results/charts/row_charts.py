"""Draws the charts that have a row for each competitor: bars, intervals, distributions and shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from markupsafe import Markup

from convbench.results.analysis.statistics import median
from convbench.results.charts.figures import Bar, Bars, Dots, Stacks, Strips
from convbench.results.charts.scales import Scale, fitted
from convbench.results.charts.svg import (
    AXIS,
    LETTER,
    LONGEST,
    RIGHT,
    WIDTH,
    element,
    grid,
    hue,
    mark,
    path,
    text,
)

ROW = 26  # height of one competitor
SPREAD = 34  # of one that shows its processes beneath each other
NAME = 17  # height of a name that stands above its row
FEW = 12  # steps of a process, drawn without letting those behind shine through

Drawing = tuple[float, list[Markup]]
Row = TypeVar("Row")


def draw_bars(figure: Bars) -> Drawing:
    """Values from zero, with their intervals."""

    def one(bar: Bar, x: Scale, y: float) -> list[Markup]:
        ends = [x(bar.value)]
        low_high = "" if bar.low is None or bar.high is None else f" ({bar.low:,.4g} to {bar.high:,.4g})"
        parts = [
            element(
                "rect",
                element("title", f"{bar.name}: {bar.text}{low_high}"),
                x=x.start,
                y=y - 8,
                width=max(x(bar.value) - x.start, 1),
                height=16,
                class_=f"point bar {hue(bar.hue)}",
            )
        ]
        if bar.low is not None and bar.high is not None:
            ends += [x(bar.low), x(min(bar.high, x.high))]
            parts.append(path([(ends[1], y), (ends[2], y)], "halo"))
            parts.append(path([(ends[1], y), (ends[2], y)], "whisker"))
        parts.append(text(max(ends) + 5, y + 4, bar.text, class_="value"))
        return parts

    most = max(bar.value for bar in figure.bars)
    highs = [min(bar.high or 0.0, 1.5 * most) for bar in figure.bars]
    room = LETTER * max(len(bar.text) for bar in figure.bars) + 8
    start = margin(bar.name for bar in figure.bars)
    x = fitted([0.0, most, *highs], start, RIGHT - room, log=False, zero=True)
    return rows(figure.bars, x, figure.axis.label, one)


def draw_dots(figure: Dots) -> Drawing:
    """Ratios with their intervals; the value stands at the end of its row."""
    room = LETTER * max(len(dot.label or "") for dot in figure.dots)

    def one(dot: Bar, x: Scale, y: float) -> list[Markup]:
        low, high = dot.low or dot.value, dot.high or dot.value
        ends = [(max(x(low), x.start), y), (min(x(high), x.end), y)]
        return [
            path(ends, f"interval {hue(dot.hue)}"),
            mark(dot.hue, x(dot.value), y, f"{dot.name}: {dot.text}"),
            text(WIDTH, y + 4, dot.label, "end", "value"),
        ]

    values = [value for dot in figure.dots for value in (dot.value, dot.low, dot.high) if value]
    start = margin(dot.name for dot in figure.dots)
    x = fitted([*clipped(values), *figure.band], start, RIGHT - room, log=True)
    height, parts = rows(figure.dots, x, figure.axis.label, one)
    left, right = (x(end) for end in figure.band)
    band = element("rect", x=left, y=0, width=right - left, height=height - AXIS, class_="band")
    return height, [band, path([(x(1), 0), (x(1), height - AXIS)], "mark"), *parts]


def clipped(values: Sequence[float]) -> list[float]:
    """Values no further than thirty times from the middle: intervals of few processes reach to the moon."""
    center = median(values)
    return [min(max(value, center / 30), center * 30) for value in values]


def draw_strips(figure: Strips) -> Drawing:
    """Every value as a dot, and the median of each process."""

    def one(strip: tuple[str, int, Sequence[Sequence[float]]], x: Scale, y: float) -> list[Markup]:
        name, number, processes = strip
        parts = []
        gap = min(8.0, (SPREAD - 10) / len(processes))
        for index, steps in enumerate(processes):
            at = y + gap * (index - (len(processes) - 1) / 2)
            # Each dot is a line of no length with round ends: a tenth of the bytes of a circle.
            d = "".join(f"M{x(value):.1f} {at:.1f}h0" for value in steps)
            center = median(steps)
            span = f"{len(steps)} steps, {min(steps):.4g} to {max(steps):.4g}"
            title = element("title", f"{name}, process {index + 1}: median {center:.4g} ms ({span})")
            few = " few" * (len(steps) <= FEW)
            parts.append(element("path", d=d, class_=f"steps{few} {hue(number)}"))
            ends = [(x(center), at - gap / 2 - 0.5), (x(center), at + gap / 2 + 0.5)]
            parts.append(element("g", title, path(ends, "halo"), path(ends, "median"), class_="point"))
        return parts

    values = [value for strip in figure.strips for steps in strip.processes for value in steps]
    x = fitted(values, margin(strip.name for strip in figure.strips), RIGHT, log=figure.axis.log)
    return rows(figure.strips, x, figure.axis.label + ", logarithmic" * x.log, one, SPREAD)


def draw_stacks(figure: Stacks) -> Drawing:
    """Shares of a whole, with their sizes written on those that have room."""

    def one(stack: tuple[str, Sequence[float]], x: Scale, y: float) -> list[Markup]:
        name, sizes = stack
        parts, at = [], 0.0
        for index, (part, size) in enumerate(zip(figure.parts, sizes, strict=True)):
            share = 100 * size / sum(sizes)
            title = element("title", f"{name}, {part}: {share:.0f} %, {size:.3g} ms")
            left, width = x(at), x(at + share) - x(at)
            parts.append(
                element(
                    "rect",
                    title,
                    x=left,
                    y=y - 9,
                    width=max(width - 1, 0.3),
                    height=18,
                    class_=f"point bar p{index}",
                )
            )
            if width > 30:
                parts.append(text(left + width / 2, y + 4, f"{share:.0f} %", "middle", "inside"))
            at += share
        return parts

    x = Scale(0, 100, margin(stack.name for stack in figure.stacks), RIGHT)
    return rows(figure.stacks, x, figure.axis.label + ", %", one)


def rows(
    items: Sequence[Row],
    x: Scale,
    label: str,
    one: Callable[[Row, Scale, float], list[Markup]],
    height: float = ROW,
) -> Drawing:
    """Competitors one beneath the other: their names on the left, or above if they are long; the axis below."""
    names = [str(item[0]) for item in items]  # type: ignore[index]  # every item begins with its name
    head = NAME if long(names) else 0
    bottom = (height + head) * len(items) + 4
    parts = grid(x, bottom, label)
    for index, (name, item) in enumerate(zip(names, items, strict=True)):
        top = (height + head) * index + 2
        y = top + head + height / 2
        if head:
            parts.append(text(0, top + NAME - 2, name, class_="name", longest=int(WIDTH / LETTER)))
        else:
            parts.append(text(x.start - 8, y + 4, name, "end", "name"))
        parts += one(item, x, y)
    return bottom + AXIS, parts


def long(names: Iterable[str]) -> bool:
    """Whether the names need lines of their own."""
    return max(map(len, names)) > LONGEST


def margin(names: Iterable[str]) -> float:
    """The room on the left for the longest name; little where names stand above."""
    lengths = [len(name) for name in names]
    return 8 if max(lengths) > LONGEST else 14 + LETTER * max(lengths)
