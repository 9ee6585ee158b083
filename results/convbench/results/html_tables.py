"""The tables of report.html: texts in rows and columns, ready to be sorted and filtered."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from convbench.results.comparison_formats import Section
from convbench.results.contents import Contents
from convbench.results.schema import MEASURED, STATUSES, Combined, Epoch, Row, columns
from convbench.results.summary import Group, Line, measured, middle
from convbench.results.tables import EMPTY, columns_of, number, share, some

MOST_ROWS = 5000  # of one table: a browser sorts so many at once, and the CSV file has them all
MOST_CHOICES = 40  # of a column's filter
PROSE = ("note", "notes", "reason", "error")  # may begin with a number, and are none
NUMBER = re.compile(r"[-+]?[\d.]")


@dataclass(frozen=True)
class HtmlColumn:
    """A column's heading, whether it sorts as numbers, and the values to filter by, if they are few."""

    title: str
    numeric: bool
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class HtmlTable:
    """A table with a name of its own; `states` marks what each row is: ok, budget or failed."""

    name: str
    caption: str
    columns: tuple[HtmlColumn, ...]
    rows: tuple[tuple[str, ...], ...]
    states: tuple[str, ...] = ()
    note: str = ""


def table(
    name: str,
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    filtered: Collection[str] = (),
    states: Sequence[str] = (),
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
            column(headings[at], [row[at] for row in rows], headings[at] in filtered) for at in kept
        ),
        rows=tuple(tuple(row[at] or EMPTY for at in kept) for row in rows[:MOST_ROWS]),
        states=tuple(states[:MOST_ROWS]),
        note=note,
    )


def column(title: str, cells: Sequence[str], filtered: bool) -> HtmlColumn:
    """A column by what it holds."""
    choices = sorted({cell for cell in cells if cell not in ("", EMPTY)}) if filtered else []
    there = [cell for cell in cells if cell not in ("", EMPTY)]
    numeric = (
        not filtered and title not in PROSE and bool(there) and all(NUMBER.match(cell) for cell in there)
    )
    return HtmlColumn(title, numeric, tuple(choices) if 1 < len(choices) <= MOST_CHOICES else ())


CONDITIONS = ("device", "dtype", "batch_size", "memory_format", "mode")


def results_table(contents: Contents) -> HtmlTable | None:
    """Every line of every race, under the conditions that differ between them."""
    groups = contents.table.groups
    lines = [(group, line) for group in groups for line in group.lines]
    if not lines:
        return None
    varying = [name for name in CONDITIONS if len({getattr(group.race, name) for group in groups}) > 1]
    shared = "architecture" if groups[0].subject == "backend" else "backend"
    conditions = [shared, *varying] if len({group.race.shared for group in groups}) > 1 else varying
    titles = list(dict.fromkeys(each.heading(group) for group in groups for each in columns_of(group)))
    subject = groups[0].subject
    measures = [title for title in titles if title not in (subject, "status")]
    rows = []
    for group, line in lines:
        texts = {each.heading(group): each.cell(line) for each in columns_of(group)}
        under = [
            str(group.race.shared if name == shared else getattr(group.race, name)) for name in conditions
        ]
        cells = [texts.get(title, EMPTY) for title in measures]
        rows.append(
            [line.name, *under, line.status, *cells, roofline(group, line, contents), "; ".join(line.notes)]
        )
    return table(
        "results",
        "One line per combination; its processes and seeds are summed up",
        [subject, *map(spaced, conditions), "status", *measures, "roofline", "note"],
        rows,
        filtered={*map(spaced, conditions), subject, "status"},
        states=[state(line.status) for _, line in lines],
    )


def roofline(group: Group, line: Line, contents: Contents) -> str:
    """The share of the attainable speed, where it was measured."""
    timed = measured(contents.rows_of(group, line.name), "time")
    fraction = middle(row.roofline_fraction for row in timed)
    return EMPTY if fraction is None else share(fraction)


def state(status: str) -> str:
    """What a status means for the reader."""
    return "ok" if status == "ok" else "budget" if status in MEASURED else "failed"


def served_table(contents: Contents) -> HtmlTable | None:
    """What each backend computed itself, and how right it was, network by network."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in contents.table.rows:
        if row.kind != "verify" and row.served is None and row.served_calls is None:
            continue
        key = (row.architecture, row.backend, row.device, row.dtype)
        cells = [
            row.served or EMPTY,
            EMPTY if row.served_flops_fraction is None else share(row.served_flops_fraction),
            EMPTY if row.max_error is None else f"{row.max_error:.1e}",
            row.status if row.kind == "verify" else EMPTY,
            " ".join(filter(None, (row.plugin, row.plugin_version))) or EMPTY,
        ]
        old = found.get(key, [EMPTY] * len(cells))
        found[key] = [new if before == EMPTY else before for before, new in zip(old, cells, strict=True)]
    headings = ["architecture", "backend", "device", "dtype", "calls served of calls made", "share of FLOPs"]
    return table(
        "served",
        "Ops that the backend computed itself; torch computed the rest",
        [*headings, "max error", "verification", "plugin"],
        [[*key, *cells] for key, cells in found.items()],
        filtered={"architecture", "backend", "device", "dtype", "verification"},
        states=[state(cells[3]) if cells[3] in STATUSES else "ok" for cells in found.values()],
    )


def failures_table(contents: Contents) -> HtmlTable | None:
    """What measured nothing, each cause once."""
    failures = contents.table.failures
    return table(
        "failures",
        "What did not run, and why; each cause once",
        ["combination", "process", "status", "reason", "more like it"],
        [
            [each.label, each.kind, each.status, each.error, f"{each.alike}" if each.alike else ""]
            for each in failures
        ],
        filtered={"process", "status"},
        states=["failed"] * len(failures),
    )


def curves_table(contents: Contents) -> HtmlTable | None:
    """The numbers behind the training curves."""
    return records_table("curves", "Training, epoch by epoch", Epoch, contents.epochs)


def rows_table(contents: Contents) -> HtmlTable | None:
    """Every row of results.csv, one per worker process."""
    last = set(map(id, contents.table.rows))
    found = records_table(
        "rows", "One line per worker process, in the order of results.csv", Row, contents.rows
    )
    if found is None or len(last) == len(contents.rows):
        return found
    return HtmlTable(
        found.name,
        f"{found.caption}; those tried again later are struck out",
        found.columns,
        found.rows,
        tuple(
            each if id(row) in last else f"{each} old"
            for each, row in zip(found.states, contents.rows, strict=False)
        ),
        found.note,
    )


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
    cells: list[Callable[[Any], str]] = [cell(each.name) for each in fields]
    return table(
        name,
        caption,
        [heading(each.name, each.unit) for each in fields],
        [[one(row) for one in cells] for row in rows],
        filtered=FILTERED,
        states=[state(getattr(row, "status", "ok")) for row in rows],
    )


def cell(name: str) -> Callable[[Any], str]:
    """How a field of a record is written."""

    def write(record: Any) -> str:
        value = getattr(record, name)
        if value is None:
            return EMPTY
        if isinstance(value, float):
            return f"{value:,.5g}" if abs(value) < 1e5 else number(value)
        return str(value)

    return write


def heading(name: str, unit: str) -> str:
    """A column's name as words, with its unit unless the name has it."""
    words = spaced(name)
    parts = [part for part in re.split(r"[ /(]", unit) if part]
    return f"{words}, {unit}" if parts and not any(part in name for part in (parts[0], "seconds")) else words


def spaced(name: str) -> str:
    """A column's name as words."""
    return name.replace("_", " ")


def section_table(number_of: int, section: Section) -> HtmlTable | None:
    """A table of a comparison."""
    states = ["ok"] * len(section.rows)
    if "verdict" in section.headings:
        at = section.headings.index("verdict")
        states = [row[at].partition(" ")[0] for row in section.rows]
    return table(
        f"section-{number_of}",
        section.title,
        section.headings,
        section.rows,
        filtered={"file", "trend"},
        states=states,
    )


def facts(contents: Contents) -> list[tuple[str, str]]:
    """What all rows share, for the heading of the report."""
    rows = contents.table.rows
    found = [
        ("suite", some(row.suite for row in rows)),
        ("data set", some(dataset(row) for row in rows)),
        ("recipe", some(row.recipe for row in rows)),
        ("device", some(row.device_name for row in rows)),
        ("torch", some(row.torch_version for row in rows)),
        ("threads", some(None if row.threads is None else str(row.threads) for row in rows)),
        ("seeds", some(str(row.seed) for row in rows)),
        ("convbench", some(row.convbench_version for row in rows)),
        ("started", some(sorted(row.started_at for row in rows if row.started_at)[:1])),
    ]
    return [(name, "; ".join(values[:8]) + " …" * (len(values) > 8)) for name, values in found if values]


def dataset(row: Row) -> str | None:
    """A row's data set with its size."""
    if row.dataset is None:
        return None
    return f"{row.dataset} ({row.train_images:,} training images)" if row.train_images else row.dataset
