"""The comparison table of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from convbench.registry.cli import terminal
from convbench.registry.cli.terminal import Column
from convbench.results.analysis.coverage import Rank
from convbench.results.analysis.standings import Group, Line, comparison_table
from convbench.results.schema import MEASURED, Row
from convbench.results.tables.comparison_table import columns_of, load, not_run, notes_of, others, warnings
from convbench.results.tables.escaping import flatten

if TYPE_CHECKING:
    from rich.console import Console


def print_table(out: Console, run: Path | str | Iterable[Row], *, rank: Rank = "served") -> None:
    """Show the comparison table of a run directory, or of rows, on a terminal."""
    if isinstance(run, (str, Path)):
        table, environment = load(Path(run), rank)
    else:
        table, environment = comparison_table(run, rank=rank), {}
    left_out: dict[str, None] = {}
    for note in warnings(table, environment):
        say(out, note.lstrip("> ").replace("**", "").replace("`", ""), "bold red")
    for group in table.groups:
        say(out, group.conditions.title, "bold")
        left_out |= dict.fromkeys(
            terminal.print_table(out, terminal_columns(group), styles=[style(line) for line in group.lines])
        )
        for note, names in notes_of(group).items():
            say(out, f"{', '.join(names)}: {note}", "dim")
        out.print()
    if table.not_run:
        say(out, not_run(table))
    for failure in table.failures:
        what = f"{failure.label}{others(failure)}, {failure.kind}: {failure.status}, {failure.error}"
        say(out, what, "red")
    if left_out:
        titles = ", ".join(title.partition(",")[0] for title in left_out)
        say(out, f"no room here for {titles}: see table.md", "dim")


def terminal_columns(group: Group) -> list[Column]:
    """The columns of a group, with how each gives way where the terminal is narrow."""
    return [
        Column(
            flatten(column.heading(group)),
            [flatten(column.cell(line)) for line in group.lines],
            right=column.numeric,
            short=[flatten(column.short(line)) for line in group.lines] if column.short else (),
            shortens=column.shortens,
            drops=column.drops,
        )
        for column in columns_of(group)
    ]


def style(line: Line) -> str | None:
    """How a line looks: what failed, what its budget cut short, and what torch computed in part stand out."""
    if line.status not in MEASURED:
        return "red"
    if line.status == "budget":
        return "yellow"
    return "magenta" if line.attribution.partial or not line.attribution.whole else None


def say(out: Console, text: str, style: str | None = None) -> None:
    """Print a sentence as it is."""
    terminal.print_text(out, flatten(text), style=style)
