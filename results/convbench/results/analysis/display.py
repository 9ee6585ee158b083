"""How a run shows itself in Python: a DataFrame, a table in a notebook, charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.registry.notebook import Displayed, html
from convbench.results.analysis.standings import Line, comparison_table
from convbench.results.schema import Row, Summary, columns

if TYPE_CHECKING:
    import pandas as pd


class ShownRows(Displayed):
    """A run that has `rows` and the `path` of its directory."""

    path: Path
    rows: tuple[Row, ...]

    def table(self) -> pd.DataFrame:
        """A row for each combination, over its processes and seeds, with the columns of `schema.Summary`."""
        return summary_frame(self.rows)

    def plot(self) -> Any:
        """The charts of the run."""
        from convbench.results.charts import plot_run

        return plot_run(self.rows)

    def __repr__(self) -> str:
        counts = Counter(each.status for each in comparison_table(self.rows).lines)
        found = ", ".join(f"{number} {status}" for status, number in counts.items()) or "nothing was measured"
        return f"run in {self.path}: {found}"

    def _repr_html_(self) -> str:
        return html(repr(self), text_frame(self.rows))


def summary_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A row for each combination, over its processes and seeds."""
    import pandas as pd

    lines, names = comparison_table(rows).lines, [each.name for each in columns(Summary)]
    frame = pd.DataFrame([[getattr(line, name) for name in names] for line in lines], columns=names)
    kinds = {int: "Int64", float: "float64", str: "string"}
    return frame.astype({each.name: kinds[each.type] for each in columns(Summary)})


def text_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """The same for people: headings, formatted numbers, no empty columns."""
    import pandas as pd

    found = comparison_table(rows).lines
    kept = [each for each in columns(Summary) if any(getattr(one, each.name) is not None for one in found)]
    shared = [each.name for each in kept if alike(found, each.name)]
    kept = [each for each in kept if each.name not in SHARED or each.name not in shared]
    return pd.DataFrame(
        {each.heading: [each.text(getattr(one, each.name)) for one in found] for each in kept}
    )


SHARED = (
    "device",
    "dtype",
    "batch_size",
    "memory_format",
    "mode",
    "world_size",
    "ranked",
)  # where they differ


def alike(found: Sequence[Line], name: str) -> bool:
    """Whether all have one value."""
    return len({getattr(each, name) for each in found}) == 1
