"""The tables of a page: of a run, and of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.coverage import names, shares
from convbench.results.analysis.flags import flag_counts, flagged
from convbench.results.analysis.roofline import Reached, peaks_of, percent, reached
from convbench.results.analysis.standings import (
    BASELINE,
    Accuracy,
    Group,
    Line,
    center,
    measured,
    middle,
)
from convbench.results.analysis.statistics import Interval
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.formats import Section, sections
from convbench.results.comparison.pairing import without_shared
from convbench.results.schema import STATUSES, Epoch, Row
from convbench.results.tables.comparison_table import COLUMNS
from convbench.results.tables.html import HtmlTable, records_table, spaced, state, table
from convbench.results.wording import EMPTY, number, share

BEFORE = ("verification", "share of FLOPs")
AFTER = ("claims", "derived backward", "max error", "plugin")
NOTE = "note"
PARTS = "; "  # between the remarks of one note
CONDITIONS = ("device", "dtype", "batch_size", "memory_format", "mode")


class Entry(NamedTuple):
    """One line of the table of results, with all that its cells are made of."""

    group: Group
    line: Line
    rows: tuple[Row, ...]  # of its processes
    timed: tuple[Row, ...]
    place: Reached | None

    def median(self, name: str) -> float | None:
        """The median of a column over the timing processes."""
        return middle(getattr(row, name, None) for row in self.timed)

    def center(self, name: str) -> float | None:
        """The geometric mean of a column over the timing processes, as that of their steps."""
        return center(getattr(row, name, None) for row in self.timed)


def results_table(contents: Contents) -> HtmlTable | None:
    """Every line of every comparison group, with the conditions that differ; one number in each cell."""
    groups = contents.table.groups
    under_roofs = {(place.group.conditions, place.name): place for place in reached(contents)}
    entries = []
    for group in groups:
        for line in group.lines:
            rows = contents.table.rows_of(group, line.name)
            place = under_roofs.get((group.conditions, line.name))
            entries.append(Entry(group, line, tuple(rows), tuple(measured(rows, "time")), place))
    if not entries:
        return None
    varying = [name for name in CONDITIONS if len({getattr(group.conditions, name) for group in groups}) > 1]
    subject = groups[0].subject
    shared = "architecture" if subject == "backend" else "backend"
    conditions = [shared, *varying] if len({group.conditions.shared for group in groups}) > 1 else varying
    return table(
        "results",
        "One line per combination; its processes and seeds are summed up",
        [subject, *map(spaced, conditions), *(measure.title for measure in RESULTS)],
        [
            [
                entry.line.name,
                *(
                    str(
                        entry.group.conditions.shared
                        if name == shared
                        else getattr(entry.group.conditions, name)
                    )
                    for name in conditions
                ),
                *(measure.cell(entry) for measure in RESULTS),
            ]
            for entry in entries
        ],
        filtered={*map(spaced, conditions), subject, "status"},
        states=[state(entry.line.status) for entry in entries],
    )


def parameters(entry: Entry) -> str:
    """Of a network, where networks are compared."""
    known = entry.line.parameters if entry.group.subject == "architecture" else None
    return EMPTY if known is None else f"{known:,}"


def between(interval: Interval | None) -> str:
    """The ends of an interval."""
    return f"{number(interval.low)}–{number(interval.high)}" if interval else EMPTY


def accuracy(is_loss: bool) -> Callable[[Entry], str]:
    """What training reached; several seeds with their range."""

    def write(entry: Entry) -> str:
        found = entry.line.accuracy
        if found is None or found.budgeted or found.is_loss != is_loss:
            return EMPTY
        seeds = f" ({found.low:.3f}–{found.high:.3f}, {found.seeds} seeds)" if found.seeds > 1 else ""
        return f"{found.mean:.3f}{seeds}"

    return write


def took(read: Callable[[Accuracy], float | None]) -> Callable[[Entry], str]:
    """What training took."""

    def write(entry: Entry) -> str:
        value = read(entry.line.accuracy) if entry.line.accuracy else None
        return EMPTY if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"

    return write


def median(name: str) -> Callable[[Entry], str]:
    """The median of a column over processes."""
    return lambda entry: number(entry.median(name))


def roofline(entry: Entry) -> str:
    """The share of the attainable speed: as the run has it, layer by layer, else of the step as a whole."""
    recorded = entry.center("roofline_fraction")
    known = recorded if recorded is not None or entry.place is None else entry.place.fraction
    return EMPTY if known is None else percent(known)


def memory(entry: Entry) -> str:
    """The peak of the timing processes."""
    known = [row.peak_memory_mb for row in entry.timed or entry.rows if row.peak_memory_mb is not None]
    return f"{max(known):,.0f}" if known else EMPTY


def note(entry: Entry) -> str:
    """What else there is to say; the flags have a column of their own."""
    told = flagged(entry.timed)
    return "; ".join(each for each in entry.line.notes if each not in told)


class Measure(NamedTuple):
    """A column of the table of results: its heading, what that means, and the text of a cell."""

    title: str
    meaning: str
    cell: Callable[[Entry], str]


def as_in_table(title: str) -> Measure:
    """A column of table.md."""
    column = next(each for each in COLUMNS if each.title == title)
    return Measure(title, column.meaning.replace("`", ""), lambda entry: column.cell(entry.line))


RESULTS = (
    as_in_table("images/s"),
    Measure(
        f"x {BASELINE}",
        f"speed relative to {BASELINE}: above 1 is faster",
        lambda entry: EMPTY if entry.line.ratio is None else f"{number(entry.line.ratio)}×",
    ),
    Measure(
        "its 95 % interval",
        f"the 95 % confidence interval of x {BASELINE}, from the spread over processes and steps",
        lambda entry: between(entry.line.ratio_interval),
    ),
    Measure(
        "status",
        "ok, or what went wrong; budget marks what its budget cut short",
        lambda entry: entry.line.status,
    ),
    Measure("parameters", "trainable parameters of the network", parameters),
    as_in_table("step, ms"),
    as_in_table("p10–p90, ms"),
    as_in_table("processes"),
    Measure(
        "accuracy",
        "validation accuracy of finished trainings; the mean over seeds, with their range",
        accuracy(is_loss=False),
    ),
    Measure("final loss", "validation loss, where there is no accuracy", accuracy(is_loss=True)),
    Measure("epochs", "passes over the training set", took(lambda reached: reached.epochs)),
    Measure("training, s", "seconds of training, evaluation apart", took(lambda reached: reached.seconds)),
    as_in_table("shifted"),
    Measure(
        "GFLOP/s",
        "counted operations of a step over its time",
        lambda entry: number(entry.center("gflops_per_second")),
    ),
    Measure(
        "FLOPs per byte",
        "counted operations of a step over the bytes it has to move at least",
        lambda entry: f"{entry.place.intensity:.3g}" if entry.place else EMPTY,
    ),
    Measure(
        "of the roofline",
        "share of the speed that the device's measured peaks allow, layer by layer if the run has that",
        roofline,
    ),
    as_in_table("coverage"),
    as_in_table("max error"),
    Measure("memory, MB", "peak of a timing process, on its device", memory),
    Measure(
        "set-up, s", "imports, building and first steps, outside every other figure", median("setup_seconds")
    ),
    Measure(
        "compiling, s",
        "the part of set-up that the first step took beyond a usual one, such as compiling",
        median("compile_seconds"),
    ),
    Measure("note", "what else a reader should know", note),
    Measure(
        "flags", "what makes times doubtful, and in how many processes", lambda entry: flag_counts(entry.rows)
    ),
)


def terms(shown: HtmlTable) -> list[tuple[str, str]]:
    """What the columns that are shown mean."""
    titles = {column.title for column in shown.columns}
    return [(measure.title, measure.meaning) for measure in RESULTS if measure.title in titles]


def peaks_table(contents: Contents) -> HtmlTable | None:
    """What each device was measured to do at most."""
    return table(
        "peaks",
        "The most that this machine was measured to do",
        ["device", "dtype", "GFLOP/s", "GB/s", "ridge, FLOPs per byte"],
        [
            [
                device,
                roof.name,
                number(roof.gflops_per_second),
                number(roof.gb_per_second),
                f"{roof.ridge:.3g}",
            ]
            for device, roof in peaks_of(contents.environment)
        ],
    )


def failures_table(contents: Contents) -> HtmlTable | None:
    """What measured nothing, each cause once."""
    failures = contents.table.failures
    return table(
        "failures",
        "What failed, and why; each cause once",
        ["combination", "process", "status", "reason", "more like it"],
        [
            [each.label, each.kind, each.status, each.error, f"{each.alike}" if each.alike else ""]
            for each in failures
        ],
        filtered={"process", "status"},
        states=[state(each.status) for each in failures],
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


def served_table(contents: Contents) -> HtmlTable | None:
    """A line per network and backend, a column per op, and how right its results were."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in contents.table.rows:
        if row.kind == "verify" or row.served is not None or row.served_calls is not None:
            known = found.setdefault((row.architecture, row.backend, row.device, row.dtype), {})
            for name, text in served_cells(row):
                known.setdefault(name, text)
    left = ("unavailable", "unsupported")  # at the end
    found = dict(sorted(found.items(), key=lambda item: item[1].get("verification") in left))
    ops = sorted({name for cells in found.values() for name in cells if name not in (*BEFORE, *AFTER)})
    headings = [*BEFORE, *ops, *AFTER]
    return table(
        "served",
        "Calls that the backend computed itself, of the calls made; torch computed the rest",
        ["architecture", "backend", "device", "dtype", *headings],
        [[*key, *(cells.get(name, EMPTY) for name in headings)] for key, cells in found.items()],
        filtered={"architecture", "backend", "device", "dtype", "verification"},
        states=[
            state(cells["verification"]) if cells.get("verification") in STATUSES else "ok"
            for cells in found.values()
        ],
        bars={"share of FLOPs"},
    )


def served_cells(row: Row) -> Iterator[tuple[str, str]]:
    """What one row tells, by column."""
    if row.kind == "verify":
        yield "verification", row.status
    if row.served_flops_fraction is not None:
        yield "share of FLOPs", share(row.served_flops_fraction)
    yield from served_ops(row).items()
    if row.claimed:
        yield "claims", ", ".join(names(row.claimed))
    if row.derived_backward:
        yield "derived backward", ", ".join(names(row.derived_backward))
    if row.max_error is not None:
        yield "max error", f"{row.max_error:.1e}"
    if row.plugin:
        yield "plugin", " ".join(filter(None, (row.plugin, row.plugin_version)))


def served_ops(row: Row) -> Mapping[str, str]:
    """The calls served of each op, with the share of its FLOPs where that says more."""
    found = {}
    for each in shares(row):
        part = f" ({share(each.flops)} of FLOPs)" if each.flops is not None and 0 < each.flops < 1 else ""
        found[each.op] = f"{each.served} of {each.calls}{part}"
    return found


def comparison_tables(comparison: Comparison) -> list[HtmlTable]:
    """The tables that have rows."""
    shared = len(shared_parts(comparison))
    found = [section_table(at, section, shared) for at, section in enumerate(sections(comparison))]
    return [each for each in found if each is not None]


def shared_remarks(comparison: Comparison) -> list[str]:
    """What the notes of all pairs begin with, as one warning; none where they have nothing in common."""
    shared = shared_parts(comparison)
    return [f"of every pair here: {PARTS.join(shared)}."] if shared else []


def shared_parts(comparison: Comparison) -> Sequence[str]:
    """The remarks that the notes of all pairs begin with, of two pairs or more."""
    written = [pair.note for pair in comparison.times] + [pair.note for pair in comparison.accuracies]
    if len(written) < 2:
        return []
    alike = takewhile(
        lambda parts: len(set(parts)) == 1, zip(*(note.split(PARTS) for note in written), strict=False)
    )
    return [parts[0] for parts in alike if parts[0]]


def section_table(number_of: int, section: Section, shared: int) -> HtmlTable | None:
    """A table of a comparison, without so many remarks of its notes, and verdicts apart from their reach."""
    headings, rows = list(section.headings), [list(row) for row in section.rows]
    states = ["ok"] * len(rows)
    at = headings.index("combination")
    names, shared_name = without_shared([row[at] for row in rows])
    for row, name in zip(rows, names, strict=True):
        row[at] = name
    if NOTE in headings:
        at = headings.index(NOTE)
        for row in rows:
            row[at] = PARTS.join(row[at].split(PARTS)[shared:])
    if "verdict" in headings:
        at = headings.index("verdict")
        for row in rows:
            verdict, _, reach = row[at].partition(" (")
            row[at : at + 1] = [verdict, reach.removesuffix(")").removeprefix("shows from ")]
        headings.insert(at + 1, "shows from")
        states = [row[at] for row in rows]
    found = table(
        f"section-{number_of}",
        section.title,
        headings,
        rows,
        filtered={"file", "trend", "verdict"},
        states=states,
    )
    if found is None or not shared_name:
        return found
    note = f"All of these are of {shared_name}. {found.note}"
    return HtmlTable(found.name, found.caption, found.columns, found.rows, found.states, note.strip())
