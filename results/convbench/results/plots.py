"""Draws figures with matplotlib, as PNG and SVG files: `convbench report RUN_DIR --plots`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING

from convbench.registry.errors import UsageError
from convbench.results.contents import read_contents
from convbench.results.figures import Bars, Curves, Dots, Figure, Stacks, Strips, figures
from convbench.results.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours and dashes of the report's light scheme.
COLOURS = (
    *("#1f6fb4", "#c2410c", "#15803d", "#b8227a", "#6d28d9"),
    *("#0f766e", "#946200", "#566070", "#be123c", "#4d7c0f"),
)
DASHES = ("-", "--", ":")
WIDTH, ROW, BASE = 6.4, 0.34, 1.4  # inches


def write_plots(run_dir: Path | str) -> list[Path]:
    """Write each chart of a run into its directory `plots`, as PNG and as SVG, and return the paths.

    Raises:
        UsageError: matplotlib is not installed, the directory holds no run, or cannot be written to.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'convbench[plots]'") from None
    contents = read_contents(run_dir)
    target = Path(run_dir) / "plots"
    written = []
    for group in contents.table.groups:
        for figure in figures(contents, group):
            canvas = matplotlib.figure.Figure(figsize=(WIDTH, height(figure)), layout="constrained")
            axes = canvas.add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{figure.title}\n{group.race.title}", loc="left", fontsize=10, parse_math=False)
            draw(figure, axes)
            for ending in ("png", "svg"):
                path = target / f"{slug(group.race.title)}-{slug(figure.title)}.{ending}"
                try:
                    target.mkdir(exist_ok=True)
                    canvas.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
                except OSError as error:
                    raise UsageError(f"cannot write {path}: {error.strerror}") from None
                written.append(path)
    return written


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9_.]+", "-", title.lower()).strip("-.")[:100]


def height(figure: Figure) -> float:
    """How high a figure is, in inches."""
    return 4.0 if isinstance(figure, Curves) else BASE + ROW * len(list(names_of(figure)))


def names_of(figure: Figure) -> Iterator[str]:
    """The competitors, from the top."""
    match figure:
        case Bars(bars=items) | Dots(dots=items):
            yield from (item.name for item in items)
        case Strips(strips=strips):
            yield from (strip.name for strip in strips)
        case Stacks(stacks=stacks):
            yield from (stack.name for stack in stacks)
        case Curves():
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
        axes.plot(dot.value, at, "o", color=colour(dot.hue), markersize=5)
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
                at, share, left=start, color=colour(index), height=0.65, label=None if at else plain(part)
            )
            start += share
    competitors(figure, axes)
    axes.set_xlabel(f"{figure.axis.label}, %")
    axes.legend(
        fontsize=8, ncols=len(figure.parts), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False
    )


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
            marker="o" if len(x) <= 20 else None,
            markersize=4,
            label=None if curve.name in named else plain(curve.name),
        )
        named.add(curve.name)
        if figure.labelled:
            axes.annotate(plain(curve.name), (x[-1], y[-1]), (5, 3), textcoords="offset points", fontsize=8)
    if figure.x.log:
        axes.set_xscale("log")
    axes.set_xlabel(figure.x.label)
    axes.set_ylabel(figure.y.label)
    axes.grid(alpha=0.25)
    if not figure.labelled:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def competitors(figure: Bars | Dots | Strips | Stacks, axes: Axes) -> None:
    """Names on the left, the first on top, and the axis they share."""
    names = [plain(name) for name in names_of(figure)]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(figure.axis.label)
    if figure.axis.log:
        axes.set_xscale("log")


def colour(hue: int) -> str:
    """The colour of a competitor."""
    return COLOURS[hue % len(COLOURS)]


def plain(name: str) -> str:
    """A name that matplotlib takes as it is: neither a formula nor, by its underscore, out of the legend."""
    shown = name if len(name) <= 40 else f"{name[:39]}…"
    shown = shown.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown
