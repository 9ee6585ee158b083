"""Draws figures as inline SVG: colours come from the page's style sheet, so that they follow its scheme.

What carries a value is of the class `point` and has a title: the page's script lets pointer and keyboard
read them one by one.
"""

from __future__ import annotations

from markupsafe import Markup

from convbench.results.charts.alternatives import in_words
from convbench.results.charts.figures import Bars, Curves, Dots, Figure, Roofline, Stacks, Strips
from convbench.results.charts.plane_charts import draw_curves, draw_roofline
from convbench.results.charts.row_charts import draw_bars, draw_dots, draw_stacks, draw_strips
from convbench.results.charts.svg import WIDTH, element


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


def draw(figure: Figure) -> tuple[float, list[Markup]]:
    """The height of a figure's canvas, and what is on it."""
    match figure:
        case Bars():
            return draw_bars(figure)
        case Dots():
            return draw_dots(figure)
        case Strips():
            return draw_strips(figure)
        case Stacks():
            return draw_stacks(figure)
        case Curves():
            return draw_curves(figure)
        case Roofline():
            return draw_roofline(figure)
