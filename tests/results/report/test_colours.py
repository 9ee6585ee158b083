"""The colours of pages and charts: told from the page, and from each other, by eyes that lack a pigment too."""

from __future__ import annotations

import math
import re
from itertools import combinations, pairwise

from convbench.results.charts.charts import BLUE, FAINT, GREY, GRID, INK, ORANGE, PARTS
from convbench.results.report.page import resource


def test_colours_can_be_told_from_the_page() -> None:
    """WCAG 2.2: a contrast of 4.5 for text (1.4.3), of 3 for what a chart is made of (1.4.11)."""
    schemes = [
        dict(re.findall(r"--(\w+(?:-\w+)?): (#\w{6})", part)) for part in resource("report.css").split("}")
    ]
    schemes = [scheme for scheme in schemes if "ink" in scheme]
    assert len(schemes) == 2  # light and dark; print has short forms of the light ones
    for scheme in schemes:
        for name in ("ink", "faint", "accent", "good", "warn", "bad"):
            for ground in ("page", "panel"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground)
        for name in ("blue", "orange", "grey"):
            assert contrast(scheme[name], scheme["page"]) >= 3
    drawn = {"blue": BLUE, "orange": ORANGE, "grey": GREY, "ink": INK, "faint": FAINT, "grid": GRID}
    drawn |= {f"p{number}": part for number, part in enumerate(PARTS)}
    assert drawn.items() <= schemes[0].items()  # files have the colours of the light scheme


def test_colours_can_be_told_from_each_other() -> None:
    """By normal eyes and by those that lack a pigment: 12 apart in CIELAB, where 2 are just noticeable."""
    schemes = [
        dict(re.findall(r"--(blue|orange|grey): (#\w{6})", part))
        for part in resource("report.css").split("}")
    ]
    for scheme in [scheme for scheme in schemes if scheme]:
        for first, second in combinations(scheme.values(), 2):
            for eyes in (NORMAL, WITHOUT_RED, WITHOUT_GREEN):
                assert math.dist(lab(first, eyes), lab(second, eyes)) >= 12, (first, second, eyes)


def test_parts_of_a_step_can_be_told_from_each_other_and_carry_texts() -> None:
    schemes = [
        dict(re.findall(r"--(p\d|page): (#\w{6})", part)) for part in resource("report.css").split("}")
    ]
    for scheme in [scheme for scheme in schemes if "p0" in scheme and "page" in scheme]:
        parts = [scheme[f"p{number}"] for number in range(4)]
        assert all(contrast(part, scheme["page"]) >= 4.5 for part in parts)
        assert all(contrast(first, second) >= 1.25 for first, second in pairwise(parts))


# Linear RGB as it is seen (Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color
# vision deficiency", IEEE Transactions on Visualization and Computer Graphics 15, 2009; severity 1).
Eyes = tuple[tuple[float, float, float], ...]
NORMAL: Eyes = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
WITHOUT_RED: Eyes = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)
WITHOUT_GREEN: Eyes = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)


def lab(colour: str, eyes: Eyes) -> tuple[float, float, float]:
    red, green, blue = (
        min(max(sum(map(math.prod, zip(weights, linear(colour), strict=True))), 0.0), 1.0) for weights in eyes
    )
    parts = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883,
    )
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in parts)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted(map(luminance, (first, second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
