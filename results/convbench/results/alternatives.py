"""What a chart shows, in words, for those who do not see it."""

from __future__ import annotations

from convbench.results.figures import Bars, Curves, Dots, Figure, Stack, Stacks, Strip, Strips
from convbench.results.statistics import median


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
            shown = [f"{c.name} ends at {c.points[-1][1]:.3g} after {c.points[-1][0]:.3g}" for c in curves]
    label = figure.x.label if isinstance(figure, Curves) else figure.axis.label
    return f"{label}: {'; '.join(shown)}"


def middle_of(strip: Strip) -> str:
    """The median of the medians of processes."""
    return f"{strip.name} median {median([median(steps) for steps in strip.processes]):.3g}"


def shares(stack: Stack, parts: tuple[str, ...]) -> str:
    """The shares of a whole."""
    sizes = zip(parts, stack.parts, strict=True)
    return (
        f"{stack.name} {', '.join(f'{part} {100 * size / sum(stack.parts):.0f} %' for part, size in sizes)}"
    )
