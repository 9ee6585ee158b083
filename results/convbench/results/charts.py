"""Draws figures as inline SVG: colours come from the page's style sheet, so that they follow its scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch
from typing import TypeVar

from markupsafe import Markup

from convbench.results.alternatives import in_words
from convbench.results.figures import Bar, Bars, Curve, Curves, Dots, Figure, Stacks, Strips
from convbench.results.scales import Scale, fitted
from convbench.results.statistics import median
from convbench.results.svg import AXIS, LETTER, LONGEST, RIGHT, WIDTH, element, grid, hue, path, text

ROW = 26  # height of one competitor

Point = tuple[float, float]
Row = TypeVar("Row")


def svg(figure: Figure) -> Markup:
    """A figure as an SVG element, with its content in words for those who do not see it."""
    height, content = draw(figure)
    return element(
        "svg",
        *content,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=f"{figure.title}. {in_words(figure)}",
    )


@singledispatch
def draw(figure: Figure) -> tuple[float, list[Markup]]:
    """The height of a figure's canvas, and what is on it."""
    raise TypeError(f"there is no way to draw a {type(figure).__name__}")


@draw.register
def _(figure: Bars) -> tuple[float, list[Markup]]:
    def one(bar: Bar, x: Scale, y: float) -> list[Markup]:
        ends = [x(bar.value)]
        parts = [
            element(
                "rect",
                element("title", f"{bar.name}: {bar.text}"),
                x=x.start,
                y=y - 8,
                width=max(x(bar.value) - x.start, 1),
                height=16,
                class_=f"bar {hue(bar.hue)}",
            )
        ]
        if bar.low is not None and bar.high is not None:
            ends += [x(bar.low), x(min(bar.high, x.high))]
            parts.append(path([(ends[1], y), (ends[2], y)], "whisker"))
        parts.append(text(max(ends) + 5, y + 4, bar.text, class_="value"))
        return parts

    most = max(bar.value for bar in figure.bars)
    highs = [min(bar.high or 0.0, 1.5 * most) for bar in figure.bars]
    room = LETTER * max(len(bar.text) for bar in figure.bars) + 8
    start = margin(bar.name for bar in figure.bars)
    x = fitted([0.0, most, *highs], start, RIGHT - room, log=False, zero=True)
    return rows(figure.bars, x, figure.axis.label, one)


@draw.register
def _(figure: Dots) -> tuple[float, list[Markup]]:
    def one(dot: Bar, x: Scale, y: float) -> list[Markup]:
        low, high = dot.low or dot.value, dot.high or dot.value
        title = element("title", f"{dot.name}: {dot.text}")
        ends = [(max(x(low), x.start), y), (min(x(high), x.end), y)]
        return [
            path(ends, f"interval {hue(dot.hue)}"),
            element("circle", title, cx=x(dot.value), cy=y, r=4.5, class_=f"dot {hue(dot.hue)}"),
        ]

    values = [value for dot in figure.dots for value in (dot.value, dot.low, dot.high) if value]
    start = margin((dot.name for dot in figure.dots), LONGEST + 10)
    x = fitted([*clipped(values), *figure.band], start, RIGHT, log=True)
    height, parts = rows(figure.dots, x, figure.axis.label, one, LONGEST + 10)
    left, right = (x(end) for end in figure.band)
    band = element("rect", x=left, y=0, width=right - left, height=height - AXIS, class_="band")
    return height, [band, path([(x(1), 0), (x(1), height - AXIS)], "mark"), *parts]


def clipped(values: Sequence[float]) -> list[float]:
    """Values between a tenth and ten times the middle: intervals of few processes reach to the moon."""
    center = median(values)
    return [min(max(value, center / 30), center * 30) for value in values]


@draw.register
def _(figure: Strips) -> tuple[float, list[Markup]]:
    def one(strip: tuple[str, int, Sequence[Sequence[float]]], x: Scale, y: float) -> list[Markup]:
        name, number, processes = strip
        parts = []
        gap = min(6.0, 16 / len(processes))
        for index, steps in enumerate(processes):
            at = y + gap * (index - (len(processes) - 1) / 2)
            # Each dot is a line of no length with round ends: a tenth of the bytes of a circle.
            d = "".join(f"M{x(value):.1f} {at:.1f}h0" for value in steps)
            center = median(steps)
            title = element("title", f"{name}, process {index + 1}: median {center:.4g} ms")
            parts.append(element("path", d=d, class_=f"steps {hue(number)}"))
            ends = [(x(center), at - gap / 2 - 1), (x(center), at + gap / 2 + 1)]
            parts.append(element("g", title, path(ends, "median")))
        return parts

    values = [value for strip in figure.strips for steps in strip.processes for value in steps]
    x = fitted(values, margin(strip.name for strip in figure.strips), RIGHT, log=figure.axis.log)
    return rows(figure.strips, x, figure.axis.label + ", logarithmic" * x.log, one)


@draw.register
def _(figure: Stacks) -> tuple[float, list[Markup]]:
    def one(stack: tuple[str, Sequence[float]], x: Scale, y: float) -> list[Markup]:
        name, sizes = stack
        parts, at = [], 0.0
        for index, (part, size) in enumerate(zip(figure.parts, sizes, strict=True)):
            share = 100 * size / sum(sizes)
            title = element("title", f"{name}, {part}: {share:.0f} %, {size:.3g} ms")
            width = x(at + share) - x(at)
            parts.append(
                element("rect", title, x=x(at), y=y - 8, width=width, height=16, class_=f"bar h{index}")
            )
            at += share
        return parts

    x = Scale(0, 100, margin(stack.name for stack in figure.stacks), RIGHT)
    return rows(figure.stacks, x, figure.axis.label + ", %", one)


def rows(
    items: Sequence[Row],
    x: Scale,
    label: str,
    one: Callable[[Row, Scale, float], list[Markup]],
    longest: int = LONGEST,
) -> tuple[float, list[Markup]]:
    """Competitors one beneath the other: their names on the left, the axis at the bottom."""
    bottom = ROW * len(items) + 4
    parts = grid(x, bottom, label)
    for index, item in enumerate(items):
        y = ROW * (index + 0.5) + 2
        name = str(item[0])  # type: ignore[index]  # every item begins with its name
        shown = name if len(name) <= longest else name[: longest - 1] + "…"
        parts.append(
            element("text", shown, element("title", name), x=x.start - 8, y=y + 4, text_anchor="end")
        )
        parts += one(item, x, y)
    return bottom + AXIS, parts


def margin(names: Iterable[str], longest: int = LONGEST) -> float:
    """The room for the longest name."""
    return 14 + LETTER * min(max(map(len, names)), longest)


@draw.register
def _(figure: Curves) -> tuple[float, list[Markup]]:
    top, bottom, left = 22, 236, 56
    points = [point for curve in figure.curves for point in curve.points]
    x = fitted((point[0] for point in points), left, RIGHT, log=figure.x.log)
    y = fitted((point[1] for point in points), bottom, top, log=False)
    parts = grid(x, bottom, figure.x.label + ", logarithmic" * x.log)
    parts.append(element("text", figure.y.label, x=0, y=12, class_="label"))
    for value, word in y.ticks(5):
        parts.append(path([(left, y(value)), (RIGHT, y(value))], "grid"))
        parts.append(text(left - 6, y(value) + 4, word, "end", "tick"))
    for curve in figure.curves:
        line = [(x(across), y(up)) for across, up in curve.points]
        if len(line) > 1:
            parts.append(path(line, f"curve {hue(curve.hue)}", curve.name))
        if len(line) <= 20:
            parts += [dot(curve, where, at) for where, at in zip(curve.points, line, strict=True)]
    if figure.labelled:
        parts += labels(
            [(curve.name, x(curve.points[-1][0]), y(curve.points[-1][1])) for curve in figure.curves]
        )
    return bottom + AXIS, parts


def dot(curve: Curve, values: Point, at: Point) -> Markup:
    """A marked point of a curve."""
    title = element("title", f"{curve.name}: {values[1]:.4g} at {values[0]:.4g}")
    return element("circle", title, cx=at[0], cy=at[1], r=3.5, class_=f"dot {hue(curve.hue)}")


def labels(named: Sequence[tuple[str, float, float]]) -> list[Markup]:
    """Names beside their points, on the side with room, none over another; those without room are left out."""
    taken = [(x - 5, x + 5, y + 4) for _, x, y in named]  # the points themselves
    parts = []
    for name, x, y in sorted(named, key=lambda each: each[2]):
        shown = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        width = LETTER * len(shown)
        left = x + 8 if x + 8 + width < WIDTH else x - 8 - width
        for shift in (4, -9, 17, -22, 30, -35, 43, -48, 56, -61):
            at = y + shift
            clear = all(
                abs(at - other) > 12 or left > end or left + width < start for start, end, other in taken
            )
            if clear and 24 < at < 236:
                taken.append((left, left + width, at))
                parts.append(element("text", shown, x=left, y=at, class_="name"))
                if abs(shift - 4) > 13:
                    parts.append(path([(x, y), (left if left > x else left + width, at - 4)], "leader"))
                break
    return parts
