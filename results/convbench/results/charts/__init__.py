"""Charts of runs and comparisons, drawn with Altair: in notebooks, on pages and as files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair as alt

    from convbench.results.comparison.compare import Comparison
    from convbench.results.schema import Row


def plot_run(rows: Iterable[Row]) -> alt.VConcatChart:
    """The throughput, coverage and accuracy charts of rows of results.csv, one below the other.

    Raises:
        UsageError: the rows measured nothing.
    """
    from convbench.results.analysis.contents import Contents
    from convbench.results.analysis.standings import comparison_table
    from convbench.results.charts.run_charts import group_charts

    table = comparison_table(rows)
    contents = Contents("", table.rows, table)
    charts = [chart for group in table.groups for chart in group_charts(contents, group)]
    return _stacked(charts, "no process measured anything")


def plot_comparison(comparison: Comparison) -> alt.VConcatChart:
    """The ratio of each pair of a comparison, and the history of each combination where there is one.

    Raises:
        UsageError: nothing could be compared.
    """
    from convbench.results.charts.comparison_charts import comparison_charts

    return _stacked(comparison_charts(comparison), "no step times could be compared")


def _stacked(charts: list[alt.LayerChart], why_none: str) -> alt.VConcatChart:
    """Charts one below the other, each with colours of its own."""
    import altair as alt

    from convbench.registry.errors import UsageError
    from convbench.results.charts.render import ON_WHITE

    if not charts:
        raise UsageError(f"there is nothing to draw: {why_none}")
    apart = alt.Resolve(scale={"color": "independent"})
    return alt.VConcatChart(vconcat=charts, resolve=apart, config=ON_WHITE)
