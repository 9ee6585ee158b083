"""Draws the charts of two axes: curves of training, single points, and rooflines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from convbench.results.charts.figures import Curve, Curves, Roof, Roofline
from convbench.results.charts.scales import Scale, fitted, short
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
    shortened,
    text,
)

TOP, BOTTOM, LEFT = 24, 240, 56
MARKED = 20  # points of one curve
LINE = 14  # height of a label

Drawing = tuple[float, list[Markup]]
Box = tuple[float, float, float, float]  # left, right, top, bottom


def draw_curves(figure: Curves) -> Drawing:
    """Lines with marks; their names stand at their ends, unless there are too many for that."""
    names = dict.fromkeys(curve.name for curve in figure.curves)
    beside = figure.named_at_ends and not figure.labelled
    room = LETTER * min(max(map(len, names)), LONGEST) + 20 if beside else 0
    points = [point for curve in figure.curves for point in curve.points]
    x = fitted(
        (each[0] for each in points),
        LEFT,
        RIGHT - room,
        log=figure.x.log,
        zero=figure.x.zero and not figure.x.log,
    )
    y = fitted((each[1] for each in points), BOTTOM, TOP, log=False)
    parts = axes(x, y, figure.x.label, figure.y.label)
    for curve in figure.curves:
        line = [(x(across), y(up)) for across, up in curve.points]
        if len(line) > 1:
            parts.append(path(line, f"curve {hue(curve.hue)}", curve.name))
    for curve in figure.curves:
        parts += [
            mark(curve.hue, x(across), y(up), f"{curve.name}: {up:.4g} at {across:,.4g}")
            for across, up in marked(curve.points)
        ]
    ends = [(curve, x(curve.points[-1][0]), y(curve.points[-1][1])) for curve in figure.curves]
    if figure.labelled:
        parts += labels([(curve.name, *at) for curve, *at in ends])  # type: ignore[misc]  # two floats
    elif beside:
        parts += at_the_end({curve.name: (curve, up) for curve, _, up in ends}, x.end + 14)
    return BOTTOM + AXIS, parts


def marked(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that get a mark: all, or some at even distances, the last among them."""
    if len(points) <= MARKED:
        return list(points)
    return [points[rank * (len(points) - 1) // (MARKED - 1)] for rank in range(MARKED)]


def axes(x: Scale, y: Scale, across: str, up: str) -> list[Markup]:
    """The grid, its numbers, and what they measure."""
    parts = grid(x, BOTTOM, across + ", logarithmic" * x.log, TOP)
    parts.append(element("text", up + ", logarithmic" * y.log, x=0, y=12, class_="label"))
    for value, word in y.ticks(5):
        parts.append(path([(LEFT, y(value)), (x.end, y(value))], "grid"))
        parts.append(text(LEFT - 6, y(value) + 4, word, "end", "tick"))
    return parts


def at_the_end(ends: dict[str, tuple[Curve, float]], left: float) -> list[Markup]:
    """The names of curves, each with its mark, as near to where its curve ends as there is room."""
    parts = []
    heights = spaced([height for _, height in sorted_ends(ends)])
    for (curve, _), y in zip(sorted_ends(ends), heights, strict=True):
        parts.append(mark(curve.hue, left, y))
        parts.append(text(left + 8, y + 4, curve.name, class_="name", longest=LONGEST))
    return parts


def sorted_ends(ends: dict[str, tuple[Curve, float]]) -> list[tuple[Curve, float]]:
    """Curves by the height of their ends, from the top."""
    return sorted(ends.values(), key=lambda each: each[1])


def spaced(heights: Sequence[float]) -> list[float]:
    """Heights in ascending order, moved apart so that a line of text fits each, and all stay on the canvas."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LINE if placed else TOP))
    lowest = float(BOTTOM)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], lowest)
        lowest = placed[index] - LINE
    return placed


def draw_roofline(figure: Roofline) -> Drawing:
    """Roofs from measured peaks, and beneath them every combination at its operations per byte."""
    intensities = [spot.intensity for spot in figure.spots]
    reach = [each for roof in figure.roofs for each in (roof.ridge / 3, roof.ridge * 3)]
    x = fitted([*intensities, *reach], LEFT, RIGHT, log=True)
    speeds = [spot.gflops_per_second for spot in figure.spots]
    tops = [roof.gflops_per_second * 1.2 for roof in figure.roofs]
    room = (max(*speeds, *tops) / min(speeds)) ** 0.1  # at the bottom, for the names of the networks
    y = fitted([min(speeds) / room, *speeds, *tops], BOTTOM, TOP, log=True)
    parts = axes(x, y, figure.x.label, figure.y.label)
    boxes: list[Box] = []
    for roof in figure.roofs:
        drawn, box = draw_roof(roof, x, y, boxes)
        parts += drawn
        boxes.append(box)
    networks = {spot.network: spot.intensity for spot in figure.spots}
    parts += columns(networks, x)
    parts += [
        mark(spot.hue, x(spot.intensity), y(spot.gflops_per_second), spot.text) for spot in figure.spots
    ]
    if figure.named_at_points:
        places = [(spot.name, x(spot.intensity), y(spot.gflops_per_second)) for spot in figure.spots]
        parts += labels(places, boxes)
    return BOTTOM + AXIS, parts


def draw_roof(roof: Roof, x: Scale, y: Scale, taken: Sequence[Box]) -> tuple[list[Markup], Box]:
    """One roof: slanted where memory is the limit, flat where arithmetic is; its name beneath the flat part."""
    foot = max(x.low, y.low / roof.gb_per_second)
    corners = [foot, min(max(roof.ridge, x.low), x.high), x.high]
    line = [(x(at), y(roof.attainable(at))) for at in corners]
    word = (
        f"{roof.name}: {short(float(f'{roof.gflops_per_second:.3g}'))} GFLOP/s, {roof.gb_per_second:.3g} GB/s"
    )
    width = LETTER * len(shortened(word, 40)) * 0.9
    height = line[-1][1] - 5
    while any(abs(height - bottom) < LINE for _, _, _, bottom in taken):
        height += LINE
    title = f"{word}; memory is the limit below {roof.ridge:.3g} FLOPs per byte"
    drawn = [
        element("g", element("title", title), path(line, "roof"), class_="point"),
        text(RIGHT, height, word, "end", "roof-name", longest=40),
    ]
    return drawn, (RIGHT - width, RIGHT, height - LINE, height)


def columns(networks: dict[str, float], x: Scale) -> list[Markup]:
    """A thin line at the operations per byte of each network, with its name where there is room."""
    parts = []
    taken = -math.inf
    for network, intensity in sorted(networks.items(), key=lambda each: each[1]):
        at, shown = x(intensity), shortened(network, LONGEST)
        parts.append(path([(at, TOP), (at, BOTTOM)], "leader"))
        width = LETTER * len(shown)
        left = min(at + 3, WIDTH - width)
        if left > taken + 4:
            parts.append(text(left, BOTTOM - 4, network, class_="tick", longest=LONGEST))
            taken = left + width
    return parts


def labels(named: Sequence[tuple[str, float, float]], boxes: Sequence[Box] = ()) -> list[Markup]:
    """Names beside their points, on the side with room, none over another; those without room are left out."""
    taken: list[Box] = [(x - 5, x + 5, y - 5, y + 5) for _, x, y in named] + list(boxes)
    parts = []
    for name, x, y in sorted(named, key=lambda each: each[2]):
        width = LETTER * min(len(name), LONGEST)
        sides = [left for left in (x + 8, x - 8 - width) if left >= LEFT and left + width <= WIDTH]
        found = place(sides, width, y, taken)
        if found is None:
            continue
        left, at = found
        taken.append((left, left + width, at - 10, at + 2))
        parts.append(text(left, at, name, class_="name", longest=LONGEST))
        if abs(at - y - 4) > 9:
            parts.append(path([(x, y), (left if left > x else left + width, at - 4)], "leader"))
    return parts


def place(sides: Sequence[float], width: float, y: float, taken: Sequence[Box]) -> tuple[float, float] | None:
    """Where a label finds room: its left end and its base line."""
    for shift in (0, -13, 13, -26, 26, -39, 39, -52, 52, -65, 65):
        for left in sides:
            at = y + 4 + shift
            clear = all(
                left + width < start or left > end or at < top + 1 or at - 10 > bottom
                for start, end, top, bottom in taken
            )
            if clear and TOP + 8 < at < BOTTOM - 2:
                return left, at
    return None
