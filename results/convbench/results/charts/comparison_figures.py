"""What the charts of a comparison show: a ratio per pair, and a history where there are many files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convbench.results.charts.figures import Axis, Bar, Curve, Curves, Dots, Figure
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.pairing import name
from convbench.results.schema import Combination

DRAWN = 40
HUES = {"slower": 1, "faster": 0, "same": 9, "unclear": 9}


def comparison_figures(comparison: Comparison) -> Iterator[Figure]:
    """The charts, of which there may be none."""
    pairs = sorted(comparison.times, key=lambda pair: (pair.verdict in ("same", "unclear"), -pair.ratio))
    names = told_apart(
        [*(pair.combination for pair in pairs), *(each.combination for each in comparison.trends)]
    )
    if pairs:
        several = len(comparison.files) > 2
        yield Dots(
            "Step time, new over base",
            Axis("ratio; right of one is slower", log=True),
            tuple(
                Bar(
                    names[pair.combination] + f" in {pair.file}" * several,
                    HUES.get(pair.verdict, 9),
                    pair.ratio,
                    pair.low,
                    pair.high,
                    f"{pair.ratio:.3f}, {pair.verdict}",
                    f"{pair.ratio:.2f}×",
                )
                for pair in pairs[:DRAWN]
            ),
            band=(1 / (1 + comparison.min_effect), 1 + comparison.min_effect),
            note="lines: 95 % intervals; shaded: too little to matter"
            + f"; the {DRAWN} that changed most, of {len(pairs)}" * (len(pairs) > DRAWN),
        )
    moving = sorted(comparison.trends, key=lambda trend: abs(trend.change - 1), reverse=True)
    curves = []
    for hue, trend in enumerate(moving[:10]):
        first = next(value for value in trend.step_ms if value is not None)
        points = [
            (float(at), value / first) for at, value in enumerate(trend.step_ms, 1) if value is not None
        ]
        curves.append(Curve(names[trend.combination], hue, tuple(points)))
    if curves:
        note = f"the 10 that changed most, of {len(moving)}" if len(moving) > 10 else ""
        x, y = Axis("file, in the order given"), Axis("step time over that of the first file")
        yield Curves("History of the step time", x, y, tuple(curves), note=note)


def told_apart(combinations: Sequence[Combination]) -> dict[Combination, str]:
    """Names of combinations without the parts that all of them share."""
    parts = {each: name(each).split("/") for each in combinations}
    if len(parts) < 2 or len({len(each) for each in parts.values()}) > 1:
        return {each: name(each) for each in combinations}
    differ = [len(set(column)) > 1 for column in zip(*parts.values(), strict=True)]
    return {
        each: "/".join(part for part, kept in zip(own, differ, strict=True) if kept)
        for each, own in parts.items()
    }
