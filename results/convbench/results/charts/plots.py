"""Draws figures with matplotlib, as PNG and SVG files: `convbench report RUN_DIR --plots`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import singledispatch
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from convbench.registry.errors import UsageError
from convbench.results.analysis.contents import Contents, read_contents
from convbench.results.analysis.coverage import Rank
from convbench.results.analysis.statistics import median
from convbench.results.charts.figures import Bars, Curves, Dots, Figure, Roofline, Stacks, Strips
from convbench.results.charts.roofline_figure import rooflines
from convbench.results.charts.run_figures import figures
from convbench.results.charts.scales import logarithmic, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours, marks and dashes of the report's light scheme.
COLOURS = (
    *("#2d6edd", "#a76213", "#094f44", "#ef4291", "#44300c"),
    *("#560d9e", "#063d49", "#c9583f", "#205a0d", "#6a737f"),
)
PARTS = ("#647186", "#3d5878", "#2c4361", "#0f1b2b")
MARKS = ("o", "s", "D", "^", "v")
DASHES = ("-", "--", ":")
LONGEST = 80  # letters of a race in the name of a file
WIDTH, ROW, BASE = 6.4, 0.34, 1.4  # inches


def write_plots(run_dir: Path | str, *, rank: Rank = "served") -> list[Path]:
    """Write each chart of a run into its directory `plots`, as PNG and as SVG, and return the paths.

    Competitors that left convolutions to torch are not ranked, unless `rank` is "all".

    Raises:
        UsageError: matplotlib is not installed, the directory holds no run, or cannot be written to.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'convbench[plots]'") from None
    contents = read_contents(run_dir, rank=rank)
    target = Path(run_dir) / "plots"
    written = []
    charts = list(every_figure(contents))
    for name, (about, figure) in zip(file_names(charts), charts, strict=True):
        canvas = matplotlib.figure.Figure(figsize=(WIDTH, height(figure)), layout="constrained")
        axes = canvas.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(
            "\n".join(filter(None, (figure.title, about))), loc="left", fontsize=10, parse_math=False
        )
        draw(figure, axes)
        for ending in ("png", "svg"):
            path = target / f"{name}.{ending}"
            try:
                target.mkdir(exist_ok=True)
                canvas.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from None
            written.append(path)
    return written


def every_figure(contents: Contents) -> Iterator[tuple[str, Figure]]:
    """The charts of the report, each with the race it is about, if it is about one."""
    for group in contents.table.groups:
        for figure in figures(contents, group):
            yield group.conditions.title, figure
    for roofline in rooflines(contents):
        yield "", roofline


def file_names(charts: Iterable[tuple[str, Figure]]) -> list[str]:
    """A name for the file of each chart, after its race and its title; no two are alike."""
    names: list[str] = []
    for about, figure in charts:
        name = "-".join(filter(None, (slug(about)[:LONGEST], slug(figure.title))))
        numbers = (f"{name}-{number}" for number in count(2))
        names.append(next(each for each in chain([name], numbers) if each not in names))
    return names


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9_.]+", "-", title.lower()).strip("-.")


def height(figure: Figure) -> float:
    """How high a figure is, in inches."""
    return 4.0 if isinstance(figure, (Curves, Roofline)) else BASE + ROW * len(list(names_of(figure)))


def names_of(figure: Figure) -> Iterator[str]:
    """The competitors, from the top."""
    match figure:
        case Bars(bars=items) | Dots(dots=items):
            yield from (item.name for item in items)
        case Strips(strips=strips):
            yield from (strip.name for strip in strips)
        case Stacks(stacks=stacks):
            yield from (stack.name for stack in stacks)
        case Curves() | Roofline():
            return


@singledispatch
def draw(figure: Figure, axes: Axes) -> None:
    """Draw a figure."""
    raise TypeError(f"there is no way to draw a {type(figure).__name__}")


@draw.register(Bars)
def _(figure: Bars, axes: Axes) -> None:
    for at, bar in enumerate(figure.bars):
        axes.barh(at, bar.value, color=colour(bar.hue), height=0.65)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [at, at], color="black", linewidth=1.2)
        axes.annotate(
            bar.text,
            (max(bar.value, bar.high or 0), at),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.12)
    competitors(figure, axes)


@draw.register(Dots)
def _(figure: Dots, axes: Axes) -> None:
    axes.axvspan(*figure.band, color="0.92")
    axes.axvline(1, color="0.5")
    for at, dot in enumerate(figure.dots):
        axes.plot([dot.low or dot.value, dot.high or dot.value], [at, at], color=colour(dot.hue))
        axes.plot(dot.value, at, marker(dot.hue), color=colour(dot.hue), markersize=5)
        axes.annotate(
            dot.label, (1, at), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8
        )
    competitors(figure, axes)


@draw.register(Strips)
def _(figure: Strips, axes: Axes) -> None:
    for at, strip in enumerate(figure.strips):
        gap = min(0.25, 0.7 / len(strip.processes))
        for index, steps in enumerate(strip.processes):
            y = at + gap * (index - (len(strip.processes) - 1) / 2)
            axes.plot(steps, [y] * len(steps), "o", color=colour(strip.hue), alpha=0.35, markersize=4, mew=0)
            axes.plot(median(steps), y, "|", color="black", markersize=7, mew=1.8)
    competitors(figure, axes)


@draw.register(Stacks)
def _(figure: Stacks, axes: Axes) -> None:
    for at, stack in enumerate(figure.stacks):
        start = 0.0
        for index, (part, size) in enumerate(zip(figure.parts, stack.parts, strict=True)):
            share = 100 * size / sum(stack.parts)
            axes.barh(
                at,
                share,
                left=start,
                color=PARTS[index % len(PARTS)],
                height=0.65,
                label=None if at else plain(part),
            )
            start += share
    competitors(figure, axes)
    axes.set_xlabel(f"{figure.axis.label}, %")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


@draw.register(Curves)
def _(figure: Curves, axes: Axes) -> None:
    named: set[str] = set()
    for curve in figure.curves:
        x, y = zip(*curve.points, strict=True)
        axes.plot(
            x,
            y,
            DASHES[curve.hue // len(COLOURS) % len(DASHES)],
            color=colour(curve.hue),
            marker=marker(curve.hue) if len(x) <= 20 else None,
            markersize=4,
            label=None if curve.name in named else plain(curve.name),
        )
        named.add(curve.name)
        if figure.labelled:
            axes.annotate(plain(curve.name), (x[-1], y[-1]), (5, 3), textcoords="offset points", fontsize=8)
    axes.margins(x=0.1)
    if figure.x.log:
        logarithmic_axis(axes, "x")
    elif figure.x.zero:
        axes.set_xlim(left=0)
    both_axes(figure, axes)
    if not figure.labelled:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


@draw.register(Roofline)
def _(figure: Roofline, axes: Axes) -> None:
    reach = [spot.intensity for spot in figure.spots] + [roof.ridge * 3 for roof in figure.roofs]
    ends = min(*reach, *(roof.ridge / 3 for roof in figure.roofs)) / 1.5, max(reach) * 1.5
    for roof in figure.roofs:
        corners = [ends[0], roof.ridge, ends[1]]
        axes.plot(corners, [roof.attainable(at) for at in corners], color="black", linewidth=1.4)
        word = f"{roof.name}: {roof.gflops_per_second:.3g} GFLOP/s, {roof.gb_per_second:.3g} GB/s"
        axes.annotate(
            plain(word),
            (ends[1], roof.gflops_per_second),
            (0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    named: set[str] = set()
    for spot in figure.spots:
        label = None if spot.name in named else plain(spot.name)
        named.add(spot.name)
        axes.plot(
            spot.intensity, spot.gflops_per_second, marker(spot.hue), color=colour(spot.hue), label=label
        )
    lowest: dict[str, tuple[float, float]] = {}
    for spot in figure.spots:
        least = lowest.get(spot.network, (0.0, spot.gflops_per_second))[1]
        lowest[spot.network] = spot.intensity, min(least, spot.gflops_per_second)
    for network, at in lowest.items():
        axes.annotate(
            plain(network), at, (0, -7), textcoords="offset points", ha="center", va="top", fontsize=8
        )
    axes.margins(y=0.15)
    logarithmic_axis(axes, "x")
    logarithmic_axis(axes, "y")
    both_axes(figure, axes)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def both_axes(figure: Curves | Roofline, axes: Axes) -> None:
    """What the axes measure, and lines at their ticks."""
    axes.set_xlabel(figure.x.label)
    axes.set_ylabel(figure.y.label)
    axes.grid(alpha=0.25)


def competitors(figure: Bars | Dots | Strips | Stacks, axes: Axes) -> None:
    """Names on the left, the first on top, and the axis they share."""
    names = [plain(name) for name in names_of(figure)]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(figure.axis.label)
    if figure.axis.log:
        logarithmic_axis(axes, "x")


def logarithmic_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with the report's ticks: matplotlib's own have none, or one, on a narrow range."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    values = logarithmic(low, high, 5)
    axis.set_ticks(values, [short(value) for value in values])
    axis.minorticks_off()


def colour(hue: int) -> str:
    """The colour of a competitor."""
    return COLOURS[hue % len(COLOURS)]


def marker(hue: int) -> str:
    """The mark of a competitor."""
    return MARKS[hue % len(MARKS)]


def plain(name: str) -> str:
    """A name that matplotlib takes as it is: neither a formula nor, by its underscore, out of the legend."""
    shown = name if len(name) <= 40 else f"{name[:39]}…"
    shown = shown.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown
