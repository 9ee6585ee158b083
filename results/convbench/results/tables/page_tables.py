"""The tables of a page: of a run, and of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.coverage import names, shares
from convbench.results.analysis.flags import flagged
from convbench.results.analysis.roofline import peaks_of, reached
from convbench.results.analysis.scaling import scaling
from convbench.results.analysis.standings import BASELINE, Line
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.formats import Section, sections
from convbench.results.comparison.pairing import PARTS, without_shared
from convbench.results.schema import STATUSES, Epoch, Row, Summary, column
from convbench.results.tables.comparison_table import (
    COVERAGE,
    QUANTILES,
    SCALING,
    Column,
    of,
    scaling_cells,
    spread,
)
from convbench.results.tables.html import HtmlTable, records_table, state, table
from convbench.results.wording import EMPTY, number, share

BEFORE = ("verification", "share of FLOPs")
AFTER = ("claims", "derived backward", "max error", "plugin")
NOTE = "note"
CONDITIONS = ("device", "dtype", "batch_size", "memory_format", "mode", "world_size", "machine_kind")


def results_table(contents: Contents) -> HtmlTable | None:
    """Every line of every comparison group, with the conditions that differ; one number in each cell."""
    lines = contents.table.lines
    if not lines:
        return None
    subject = contents.table.groups[0].subject
    shared = "architecture" if subject == "backend" else "backend"
    names = [name for name in (shared, *CONDITIONS) if len({getattr(line, name) for line in lines}) > 1]
    shown = [each for each in RESULTS if each.belongs(subject)]
    by_step = {id(place.line): place.fraction for place in reached(contents)}
    return table(
        "results",
        "One line per combination; its processes and seeds are summed up",
        [subject, *(column(Summary, name).heading for name in names), *(each.title for each in shown)],
        [
            [
                line.name,
                *(str(getattr(line, name) or EMPTY) for name in names),
                *(each.cell(with_roofline(line, by_step.get(id(line)))) for each in shown),
            ]
            for line in lines
        ],
        filtered={subject, "status", *(column(Summary, name).heading for name in names)},
        states=[state(line.status) for line in lines],
    )


def with_roofline(line: Line, of_step: float | None) -> Line:
    """A line with the share of the roofline of a whole step, where the run has none of its layers."""
    return line if line.roofline_fraction is not None else replace(line, roofline_fraction=of_step)


def between(line: Line) -> str:
    """The ends of the interval of the speed."""
    interval = line.speedup_interval
    return f"{number(interval.low)}–{number(interval.high)}" if interval else EMPTY


def accuracy(line: Line, is_loss: bool) -> str:
    """What finished trainings reached; several seeds with their range."""
    found = line.accuracy
    return EMPTY if found is None or found.budgeted or found.is_loss != is_loss else spread(found)


def note(line: Line) -> str:
    """What else there is to say; the flags have a column of their own."""
    told = flagged(line.timed)
    return "; ".join(each for each in line.remarks if each not in told)


RESULTS = (
    of("images_per_second"),
    of("speedup"),
    Column(
        "its 95 % interval", between, f"the 95 % interval of x {BASELINE}, from the spread over processes"
    ),
    of("status"),
    of("parameters"),
    of("step_ms"),
    QUANTILES,
    of("processes"),
    of(
        "val_accuracy",
        partial(accuracy, is_loss=False),
        "validation accuracy of finished trainings; the mean over seeds, with their range",
    ),
    of("val_loss", partial(accuracy, is_loss=True)),
    of("epochs"),
    of("train_seconds"),
    of("shifted_val_accuracy"),
    of("gflops_per_second"),
    of("arithmetic_intensity"),
    of("roofline_fraction"),
    COVERAGE,
    of("max_error"),
    of("peak_memory_mb"),
    of("setup_seconds"),
    of("compile_seconds"),
    of("notes", note),
    of("flags"),
)


def terms(shown: HtmlTable) -> list[tuple[str, str]]:
    """What the columns that are shown mean."""
    titles = {each.title for each in shown.columns}
    return [(each.title, each.meaning.replace("`", "")) for each in RESULTS if each.title in titles]


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


def scaling_table(contents: Contents) -> HtmlTable | None:
    """How much faster several processes are than one, and which share of what is possible that is."""
    found = scaling(contents.table.lines)
    return table("scaling", "Several processes beside one", list(SCALING), list(map(scaling_cells, found)))


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
    if row.supported_ops:
        yield "claims", ", ".join(names(row.supported_ops))
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
