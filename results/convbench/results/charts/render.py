"""Turns charts into SVG for a page, and into PNG and SVG files, with vl-convert: neither needs a browser."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from markupsafe import Markup, escape

from convbench.registry.errors import UsageError
from convbench.results.charts.charts import BLUE, FAINT, GREY, GRID, INK, ORANGE, PAPER, PARTS, Chart

CONFIG: dict[str, Any] = {
    "font": "sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "gridColor": GRID, "domainColor": GRID, "tickColor": GRID, "labelColor": INK, "titleColor": FAINT,
        "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "aria": False,
    },
    "axisX": {"labelColor": FAINT},
    "axisY": {"grid": False},
    "axisYQuantitative": {"grid": True, "labelColor": FAINT},
    "legend": {"labelColor": INK, "labelFontSize": 11, "aria": False},
    "text": {"fontSize": 11},
    "title": {
        "anchor": "start", "color": INK, "fontSize": 14, "subtitleColor": FAINT, "subtitleFontSize": 11,
        "aria": False,
    },
}  # fmt: skip
ON_WHITE = CONFIG | {"background": "white"}  # of notebooks and files; the page has a ground of its own
VARIABLES = {
    BLUE: "blue", ORANGE: "orange", GREY: "grey", INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "page",
    **{colour: f"p{at}" for at, colour in enumerate(PARTS)},
}  # fmt: skip
MARK = re.compile(
    r'<path aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="[\w -]+" ([^>]*?)/>'
)
UNUSED = re.compile(
    r' (?:(?:role|aria-roledescription|aria-label|font-family|font-weight|pointer-events|class)="[^"]*"'
    r'|opacity="1")'
    r"|(?<=\.\d)\d+"  # digits of pixels that nobody sees
)
EMPTY = re.compile(r'<path aria-hidden="true" d="(?:M0,0h0v0h0Z)?"(?: display="none")?/>')
LONGEST = 80  # letters of a comparison group in the name of a file


def specification(chart: Chart | alt.HConcatChart) -> dict[str, Any]:
    """A chart as Vega-Lite, in the style of our pages."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec | {"config": dict(CONFIG), "padding": 2}


class Figure(NamedTuple):
    """A chart for a page: an SVG element without its title, and that title with the note below it."""

    title: str
    note: str
    svg: Markup


def figure(chart: Chart) -> Figure:
    """A chart in the colours of the page's style sheet.

    Values that can be read one by one have the class `point` and a title, which the page's script shows. All of
    them together are the label that screen readers read.
    """
    spec = specification(chart)
    title = spec.pop("title")
    drawn = vl_convert.vegalite_to_svg(spec)
    drawn = MARK.sub(r'<path class="point" \2><title>\1</title></path>', drawn)
    head, _, body = drawn.partition(">")
    box = re.search(r'viewBox="[\d. ]+"', head)
    points = re.findall(r"<title>(.*?)</title>", body)
    body = re.sub(r"<[^>]*>", lambda tag: UNUSED.sub("", tag[0]), body.replace('class="point"', "POINT"))
    body = EMPTY.sub("", body).replace("POINT", 'class="point"')
    for colour, name in VARIABLES.items():
        body = body.replace(f'"{colour}"', f'"var(--{name})"')
    text, note = title["text"], title.get("subtitle", "")
    label = f"{escape(text)}. {escape(note)}: {'; '.join(points)}"
    return Figure(text, note, Markup(f'<svg {box[0] if box else ""} role="img" aria-label="{label}">{body}'))


def write_files(charts: Iterable[tuple[str, Chart]], target: Path) -> list[Path]:
    """Write charts into a directory, as PNG and as SVG; each comes with what it is about, for the file's name.

    Raises:
        UsageError: a file cannot be written.
    """
    written: list[Path] = []
    for about, chart in charts:
        spec = specification(chart)
        spec["config"] = ON_WHITE
        if about:
            title = spec["title"]
            spec["title"] = title | {"subtitle": [each for each in (about, title.get("subtitle")) if each]}
        name = "-".join(filter(None, (slug(about)[:LONGEST], slug(spec["title"]["text"]))))
        numbered = (f"{name}-{number}" for number in count(2))
        name = next(each for each in chain([name], numbered) if target / f"{each}.png" not in written)
        for ending, content in (
            ("png", vl_convert.vegalite_to_png(spec, scale=2)),
            ("svg", vl_convert.vegalite_to_svg(spec).encode()),
        ):
            path = target / f"{name}.{ending}"
            try:
                target.mkdir(exist_ok=True)
                path.write_bytes(content)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from None
            written.append(path)
    return written


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9_.]+", "-", title.lower()).strip("-.")
