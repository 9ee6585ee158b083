"""What a chart shows, in words, for those who do not see it."""

from __future__ import annotations

from convbench.results.analysis.statistics import median
from convbench.results.charts.figures import (
    Bars,
    Curve,
    Curves,
    Dots,
    Figure,
    Roof,
    Roofline,
    Stack,
    Stacks,
    Strip,
    Strips,
)


def in_words(figure: Figure) -> str:
    """Every value of a chart that can be told in a few words."""
    match figure:
        case Bars(bars=values) | Dots(dots=values):
            shown = [f"{each.name} {each.text}" for each in values]
        case Strips(strips=strips):
            shown = list(map(middle_of, strips))
        case Stacks(stacks=stacks, parts=parts):
            shown = [shares(stack, parts) for stack in stacks]
        case Curves(curves=curves):
            shown = [f"{each.name} {ending(figure, each)}" for each in curves]
        case Roofline(roofs=roofs, spots=spots):
            shown = [*map(peaks, roofs), *(spot.text for spot in spots)]
    label = figure.y.label if isinstance(figure, (Curves, Roofline)) else figure.axis.label
    return f"{label}: {'; '.join(shown)}"


def ending(figure: Curves, curve: Curve) -> str:
    """Where a curve ends, or where its single point is."""
    across, up = curve.points[-1]
    return (
        f"{'ends at ' * (not figure.labelled)}{up:.3g} after {across:,.3g} {figure.x.label.partition(',')[0]}"
    )


def peaks(roof: Roof) -> str:
    """What a device does at most."""
    return (
        f"{roof.name} at most {roof.gflops_per_second:.3g} GFLOP/s and {roof.gb_per_second:.3g} GB/s, "
        f"which meet at {roof.ridge:.3g} FLOPs per byte"
    )


def middle_of(strip: Strip) -> str:
    """The median of the medians of processes."""
    return f"{strip.name} median {median([median(steps) for steps in strip.processes]):.3g}"


def shares(stack: Stack, parts: tuple[str, ...]) -> str:
    """The shares of a whole."""
    sizes = zip(parts, stack.parts, strict=True)
    return (
        f"{stack.name} {', '.join(f'{part} {100 * size / sum(stack.parts):.0f} %' for part, size in sizes)}"
    )
