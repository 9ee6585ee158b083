"""The comparison table of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from convbench.results.attribution import Rank
from convbench.results.escaping import flatten
from convbench.results.schema import MEASURED, Row
from convbench.results.summary import Group, comparison_table
from convbench.results.tables import columns_of, load, others, warnings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable


def print_table(console: Console, run: Path | str | Iterable[Row], *, rank: Rank = "served") -> None:
    """Show the comparison table of a run directory, or of rows, on a terminal."""
    if isinstance(run, (str, Path)):
        table, environment = load(Path(run), rank)
    else:
        table, environment = comparison_table(run, rank=rank), {}
    for note in warnings(table, environment):
        console.print(plain(note.lstrip("> ").replace("**", "").replace("`", "")), style="bold red")
    for group in table.groups:
        console.print(rich_table(group))
        for line in group.lines:
            for note in line.notes:
                console.print(plain(f"{line.name}: {note}"), style="dim")
    for failure in table.failures:
        console.print(
            plain(f"{failure.label}{others(failure)}, {failure.kind}: {failure.status}, {failure.error}"),
            style="red",
        )


def rich_table(group: Group) -> RichTable:
    """One group as a table for a terminal."""
    from rich.table import Table as RichTable

    table = RichTable(title=plain(group.race.title), title_justify="left")
    shown = columns_of(group)
    for column in shown:
        table.add_column(
            plain(column.heading(group)), justify="right" if column.numeric else "left", overflow="fold"
        )
    for line in group.lines:
        style = "red" if line.status not in MEASURED else "yellow" if line.status == "budget" else None
        style = style or ("magenta" if line.attribution.partial or not line.attribution.whole else None)
        table.add_row(*(plain(column.cell(line)) for column in shown), style=style)
    return table


def plain(text: str) -> str:
    """A text that a terminal shows as it is."""
    from rich.markup import escape as literal

    return literal(flatten(text))
