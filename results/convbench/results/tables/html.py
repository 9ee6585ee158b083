"""Tables of texts for a page, ready to be sorted and filtered: of cells, and of records as they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from convbench.results.analysis.standings import CANNOT
from convbench.results.schema import MEASURED, Combined, columns
from convbench.results.tables.escaping import printable
from convbench.results.wording import EMPTY, number

MOST_ROWS = 5000  # of one table: a browser sorts so many at once, and the CSV file has them all
MOST_CHOICES = 40  # of a column's filter
PROSE = ("note", "notes", "reason", "error")  # may begin with a number, and are none
NUMBER = re.compile(r"[-+]?[\d.]")


@dataclass(frozen=True)
class HtmlColumn:
    """A column's heading, whether it sorts as numbers, and the values to filter by, if they are few.

    Percentages of a column with bars are drawn behind their texts.
    """

    title: str
    numeric: bool
    choices: tuple[str, ...] = ()
    bars: bool = False


@dataclass(frozen=True)
class HtmlTable:
    """A table with a name of its own; `states` marks what each row is: ok, budget, failed,
    or idle where a backend cannot run."""

    name: str
    caption: str
    columns: tuple[HtmlColumn, ...]
    rows: tuple[tuple[str, ...], ...]
    states: tuple[str, ...] = ()
    note: str = ""

    @property
    def body(self) -> Markup:
        """The rows as HTML; the first cell names its row."""
        states = self.states or ("",) * len(self.rows)
        return Markup("\n".join(map(self.tr, self.rows, states)))

    def tr(self, cells: Sequence[str], state: str) -> str:
        """A row as HTML."""
        mark = f' class="is-{escape(state)}"' if state else ""
        long = ' class="long"' if len(cells[0]) > 18 else ""
        rest = "".join(map(td, self.columns[1:], cells[1:]))
        return f'<tr{mark}><th scope="row"{long}>{escape(cells[0])}</th>{rest}</tr>'


def td(column: HtmlColumn, cell: str) -> str:
    """A cell as HTML, of the class that its column or its length gives it."""
    kind = "long" if len(cell) > 40 else ""
    if column.title == "flags":
        kind = "flags" if cell != EMPTY else ""
    elif column.title in ("status", "verdict"):
        kind = "status"
    elif column.numeric:
        kind = "number"
    shown = escape(cell)
    if column.bars and "%" in cell:
        value = escape(cell.partition(" ")[0])
        shown = f'<meter aria-hidden="true" max="100" value="{value}"></meter> {shown}'
    return f'<td class="{kind}">{shown}</td>' if kind else f"<td>{shown}</td>"


def table(
    name: str,
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    filtered: Collection[str] = (),
    states: Sequence[str] = (),
    bars: Collection[str] = (),
) -> HtmlTable | None:
    """A table without the columns that are empty throughout; None without rows."""
    if not rows:
        return None
    kept = [
        at for at, title in enumerate(headings) if title and any(row[at] not in ("", EMPTY) for row in rows)
    ]
    note = f"The first {MOST_ROWS:,} of {len(rows):,} are shown." if len(rows) > MOST_ROWS else ""
    return HtmlTable(
        name=name,
        caption=caption,
        columns=tuple(
            column(headings[at], [row[at] for row in rows], headings[at] in filtered, headings[at] in bars)
            for at in kept
        ),
        rows=tuple(tuple(printable(row[at]) or EMPTY for at in kept) for row in rows[:MOST_ROWS]),
        states=tuple(states[:MOST_ROWS]),
        note=note,
    )


def column(title: str, cells: Sequence[str], filtered: bool, bars: bool) -> HtmlColumn:
    """A column by what it holds."""
    found = {cell for cell in cells if cell not in ("", EMPTY)} if filtered else set()
    choices = sorted(set(map(printable, found)))  # as the cells show them
    there = [cell for cell in cells if cell not in ("", EMPTY)]
    numeric = (
        not filtered and title not in PROSE and bool(there) and all(NUMBER.match(cell) for cell in there)
    )
    return HtmlColumn(title, numeric, tuple(choices) if 1 < len(choices) <= MOST_CHOICES else (), bars)


def state(status: str) -> str:
    """What a status means for the reader."""
    if status in CANNOT:
        return "idle"
    return "ok" if status == "ok" else "budget" if status in MEASURED else "failed"


FILTERED = {"kind", "status", "architecture", "backend", "device", "dtype", "batch size", "mode"}
LEFT_OUT = {"run_id", "combination_key", "recipe", "convbench_version", "torch_version"}


def records_table(name: str, caption: str, record: type[Combined], rows: Sequence[Any]) -> HtmlTable | None:
    """Records as they are, without what they all share; that stands in the heading of the report."""
    fields = [each for each in columns(record) if each.name not in LEFT_OUT]
    fields = [
        each
        for each in fields
        if each.name in ("kind", "status", "backend")
        or len(rows) == 1
        or len({getattr(row, each.name) for row in rows}) > 1
    ]
    return table(
        name,
        caption,
        [each.heading for each in fields],
        [[text_of(getattr(row, each.name)) for each in fields] for row in rows],
        filtered=FILTERED,
        states=[state(getattr(row, "status", "ok")) for row in rows],
    )


def text_of(value: Any) -> str:
    """A field of a record as it is."""
    if isinstance(value, float):
        return f"{value:,.5g}" if abs(value) < 1e5 else number(value)
    return EMPTY if value is None else str(value)
