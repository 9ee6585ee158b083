"""The charts of a comparison: a ratio for each pair, and a history where there are more than two files."""

from __future__ import annotations

import pandas as pd

from convbench.results.charts.charts import ROLES, Chart, curves, ratio_forest
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.pairing import name, without_shared
from convbench.results.tables.escaping import flatten

DRAWN = 40
HISTORIES = 10


def comparison_charts(comparison: Comparison) -> list[Chart]:
    """The charts, of which there may be none."""
    pairs = sorted(comparison.times, key=lambda pair: (pair.verdict in ("same", "unclear"), -pair.ratio))
    combinations = [*(pair.combination for pair in pairs), *(each.combination for each in comparison.trends)]
    names, _ = without_shared([flatten(name(each)) for each in combinations])
    named = dict(zip(combinations, names, strict=True))
    several = len(comparison.files) > 2
    found: list[Chart] = []
    if pairs:
        rows = [
            {
                "name": whose,
                "role": pair.verdict if pair.verdict in ROLES else "other",
                "ratio": pair.ratio,
                "low": pair.low,
                "high": pair.high,
                "text": f"{pair.ratio:.2f}×",
                "label": f"{whose}: {pair.ratio:.3f}, {pair.verdict}",
            }
            for pair in pairs[:DRAWN]
            for whose in [
                named[pair.combination]
                + flatten(f" on {pair.machine_kind}") * bool(pair.machine_kind)
                + flatten(f" in {pair.file}") * several
            ]
        ]
        most = 1 + comparison.min_effect
        note = "lines: 95 % intervals; shaded: too little to matter"
        note += f"; the {DRAWN} that changed most, of {len(pairs)}" * (len(pairs) > DRAWN)
        frame = pd.DataFrame(rows).astype({"low": float, "high": float})
        axis = "ratio; right of one is slower"
        found.append(ratio_forest(frame, "Step time, new over base", axis, note, (1 / most, most)))
    moving = sorted(comparison.trends, key=lambda trend: abs(trend.change - 1), reverse=True)
    points = [
        {
            "name": named[trend.combination],
            "role": trend.verdict if trend.verdict in ROLES else "other",
            "series": 0,
            "file": float(at),
            "ratio": value / first,
            "label": f"{named[trend.combination]}: {value / first:.4g} in file {at}",
        }
        for trend in moving[:HISTORIES]
        for first in [next(value for value in trend.step_ms if value is not None)]
        for at, value in enumerate(trend.step_ms, 1)
        if value is not None
    ]
    if points:
        note = f"the {HISTORIES} that changed most, of {len(moving)}" if len(moving) > HISTORIES else ""
        x, y = ("file", "file, in the order given"), ("ratio", "step time over that of the first file")
        found.append(curves(pd.DataFrame(points), "History of the step time", x, y, note, start=1.0))
    return found
