"""What the charts of a comparison show: a ratio per pair, and a history where there are many files."""

from __future__ import annotations

from collections.abc import Iterator

from convbench.results.comparing import Comparison
from convbench.results.figures import Axis, Bar, Curve, Curves, Dots, Figure
from convbench.results.pairing import name

DRAWN = 40
HUES = {"slower": 1, "faster": 2, "same": 7, "unclear": 7}


def comparison_figures(comparison: Comparison) -> Iterator[Figure]:
    """The charts, of which there may be none."""
    pairs = sorted(comparison.times, key=lambda pair: (pair.verdict in ("same", "unclear"), -pair.ratio))
    if pairs:
        several = len(comparison.files) > 2
        yield Dots(
            "Step time, new over base",
            Axis("ratio; right of one is slower", log=True),
            tuple(
                Bar(
                    name(pair.combination) + f" in {pair.file}" * several,
                    HUES.get(pair.verdict, 7),
                    pair.ratio,
                    pair.low,
                    pair.high,
                    f"{pair.ratio:.3f}, {pair.verdict}",
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
        curves.append(Curve(name(trend.combination), hue, tuple(points)))
    if curves:
        note = f"the 10 that changed most, of {len(moving)}" if len(moving) > 10 else ""
        x, y = Axis("file, in the order given"), Axis("step time over that of the first file")
        yield Curves("History of the step time", x, y, tuple(curves), note=note)
