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
    import altair as alt

    from convbench.registry.errors import UsageError
    from convbench.results.analysis.contents import Contents
    from convbench.results.analysis.standings import comparison_table
    from convbench.results.charts.run_charts import group_charts

    table = comparison_table(rows)
    contents = Contents("", table.rows, table)
    charts = [chart for group in table.groups for chart in group_charts(contents, group)]
    if not charts:
        raise UsageError("there is nothing to draw: no process measured anything")
    return alt.VConcatChart(vconcat=charts, resolve=alt.Resolve(scale={"color": "independent"}))


def plot_comparison(comparison: Comparison) -> alt.VConcatChart:
    """The ratio of each pair of a comparison, and the history of each combination where there is one.

    Raises:
        UsageError: nothing could be compared.
    """
    import altair as alt

    from convbench.registry.errors import UsageError
    from convbench.results.charts.comparison_charts import comparison_charts

    charts = comparison_charts(comparison)
    if not charts:
        raise UsageError("there is nothing to draw: no step times could be compared")
    return alt.VConcatChart(vconcat=charts, resolve=alt.Resolve(scale={"color": "independent"}))
