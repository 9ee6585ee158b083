"""The comparison table of a run: its columns, as Markdown for table.md and for a terminal."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.registry.cli import terminal
from convbench.results.analysis.coverage import Rank
from convbench.results.analysis.machine_kinds import machines_in_words
from convbench.results.analysis.scaling import Scaling, scaling
from convbench.results.analysis.standings import Accuracy, Failure, Group, Line, Table, comparison_table
from convbench.results.schema import MEASURED, Row, Summary, column
from convbench.results.tables.escaping import code, escape, flatten
from convbench.results.wording import EMPTY, number, percent, share

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["comparison_table", "table_markdown"]

NAMED = 8  # values of one fact
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")  # that stands alone


def table_markdown(run: Path | str | Iterable[Row], *, rank: Rank = "served") -> str:
    """The comparison table of a run directory, or of rows, for a person to understand at a glance.

    Raises:
        UsageError: the directory holds no results.csv, or one that cannot be read.
    """
    return markdown(*load(run, rank))


def markdown(table: Table, environment: Mapping[str, Any]) -> str:
    """A table with all that belongs to it, as Markdown."""
    parts = [*heading(table, environment), *(note + "\n" for note in warnings(table, environment))]
    if not table.groups:
        parts.append("Nothing was run.\n")
    for group in table.groups:
        if len(table.groups) > 1:
            parts.append(f"## {escape(group.conditions.title)}\n")
        parts.append(group_markdown(group))
        notes = notes_of(group)
        parts += [f"- {', '.join(map(code, names))}: {escape(note)}" for note, names in notes.items()]
        if notes:
            parts.append("")
    if found := scaling(table.lines):
        lines = [SCALING, ["---"] * len(SCALING), *(list(map(escape, scaling_cells(each))) for each in found)]
        parts += ["## Several processes beside one\n", *(f"| {' | '.join(cells)} |" for cells in lines), ""]
    if table.not_run:
        parts.append(f"{escape(not_run(table))}\n")
    if table.failures:
        parts.append("## What failed\n")
        parts += [
            f"- {code(f.label)}{others(f)}, {f.kind}: **{f.status}**, {escape(f.error)}"
            for f in table.failures
        ]
        parts.append("")
    if table.groups:
        parts.append(legend(table) + "\n")
    return "\n".join(parts)


SCALING = (
    "scaling", "architecture", "backend", "device", "processes", "batch size", "images/s", "speed-up",
    "efficiency", "all-reduce",
)  # fmt: skip


def scaling_cells(found: Scaling) -> list[str]:
    """A line of the table with these headings."""
    line = found.line
    return [
        found.kind,
        line.architecture,
        line.backend,
        line.device,
        str(line.world_size),
        str(line.batch_size),
        number(line.images_per_second or 0.0),
        f"{number(found.speedup)}×",
        percent(found.efficiency),
        EMPTY if found.allreduce_share is None else percent(found.allreduce_share),
    ]


def not_run(table: Table) -> str:
    """What cannot run, each reason once, in one line."""
    return f"not run: {'; '.join(map(str, table.not_run))}"


def notes_of(group: Group) -> dict[str, list[str]]:
    """The notes on the lines of a group, each with the names of its lines.

    Notes that differ in one number are one, with the range of that number.
    """
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in group.lines:
        for note in line.remarks:
            alike[NUMBER.sub("0", note)].append((note, line.name))
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for pairs in alike.values():
        said = with_range([note for note, _ in pairs])
        for note, name in pairs:
            found[said or note][name] = None
    return {note: list(names) for note, names in found.items()}


def with_range(notes: Sequence[str]) -> str:
    """Notes of the same words that differ in one number as one; empty where they differ in more."""
    spans = [
        sorted(set(column), key=lambda each: float(each.replace(",", "")))
        for column in zip(*map(NUMBER.findall, notes), strict=True)
    ]
    if sum(len(span) > 1 for span in spans) != 1:
        return ""
    numbers = [" to ".join(dict.fromkeys((span[0], span[-1]))) for span in spans]
    return "".join(chain(*zip_longest(NUMBER.split(notes[0]), numbers, fillvalue="")))


def legend(table: Table) -> str:
    """What the columns mean that are shown."""
    shown = {column.title for group in table.groups for column in columns_of(group)}
    return "; ".join(f"**{c.title}**: {c.meaning}" for c in COLUMNS if c.title in shown and c.meaning) + "."


def load(run: Path | str | Iterable[Row], rank: Rank) -> tuple[Table, Mapping[str, Any]]:
    """The table and the environment of a run directory, or of rows."""
    from convbench.results.analysis.contents import read_contents

    if not isinstance(run, (str, Path)):
        return comparison_table(run, rank=rank), {}
    contents = read_contents(run, rank=rank)
    return contents.table, contents.environment


def heading(table: Table, environment: Mapping[str, Any]) -> list[str]:
    """What was run, on what, with what."""
    if not table.rows:
        return ["# convbench\n"]
    title = f"# {escape(' and '.join(some(row.suite for row in table.rows)))}\n"
    if len(table.groups) == 1:
        title += f"\n{escape(table.groups[0].conditions.title)}.\n"
    return [title, *(f"- {name}: {escape(text)}" for name, text in facts(table.rows, environment)), ""]


def facts(rows: Sequence[Row], environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What rows were measured with, and on what."""
    found = [
        ("run", some(row.run_id for row in rows)),
        ("data set", some(dataset(row) for row in rows)),
        ("seeds", some(str(row.seed) for row in rows)),
        ("recipe", some(row.recipe for row in rows)),
        ("machine", machine(rows, environment)),
        ("torch", some(row.torch_version for row in rows)),
        ("threads", some(None if row.threads is None else str(row.threads) for row in rows)),
        ("convbench", some(row.convbench_version for row in rows)),
        ("started", [moment(each) for each in sorted(row.started_at for row in rows if row.started_at)[:1]]),
    ]
    return [
        (name, "; ".join(values[:NAMED]) + " …" * (len(values) > NAMED)) for name, values in found if values
    ]


def moment(started_at: str) -> str:
    """A time as one reads it, to the minute."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:[\d.]+)?(\+00:00|Z)$", r"\1 \2 UTC", started_at)


def some(values: Iterable[str | None]) -> list[str]:
    """The distinct values that are there, in order of appearance."""
    return list(dict.fromkeys(value for value in values if value))


def dataset(row: Row) -> str | None:
    """A row's data set with its size."""
    if row.dataset is None:
        return None
    return f"{row.dataset}, {row.train_images:,} training images" if row.train_images else row.dataset


def machine(rows: Iterable[Row], environment: Mapping[str, Any]) -> list[str]:
    """The machine, from environment.json where it is there."""
    devices = some(row.device_name for row in rows)
    words = [
        f"{environment['logical_cores']} hardware threads" if environment.get("logical_cores") else None,
        f"{environment['memory_gb']:.0f} GB memory" if environment.get("memory_gb") else None,
        environment.get("operating_system"),
        environment.get("python"),
    ]
    return [", ".join([" and ".join(devices) or str(environment.get("cpu_model", "unknown")), *some(words)])]


def warnings(table: Table, environment: Mapping[str, Any]) -> list[str]:
    """What a reader must not miss."""
    notes = interruption(table.rows, environment)
    if any((row.dataset or "").endswith("-sample") for row in table.rows):
        trained = any(row.kind == "train" for row in table.rows)
        lower = ": accuracies are lower, and cannot be compared with those of the whole" * trained
        notes.append(
            f"> **This run used the small embedded sample, not the whole data set{lower}.** "
            "`--dataset fashion-mnist` takes the whole, and `convbench data fetch` downloads it."
        )
    if any(row.flush_denormal == 0 for row in table.rows):
        notes.append(
            "> **Denormal numbers were not flushed to zero: a CPU may slow down as training goes on.**"
        )
    if machines := machines_in(table.rows):
        divided = any(group.conditions.machine_kind for group in table.groups)
        notes.append(machines + " Where they differ between kinds of machines, each has a table." * divided)
    return notes


def machines_in(rows: Iterable[Row]) -> str:
    """How many machines of which kinds the rows come from; empty for one."""
    rows = [row for row in rows if row.node or row.machine_id]
    machines = machines_in_words({row.node or row.machine_id: row.device_name or "unknown" for row in rows})
    if not machines:
        return ""
    how = (
        "Speeds are compared within blocks: one round on one machine."
        if all(row.block for row in rows if row.step_ms_median)
        else "They are no blocks of one run: speeds of different machines are compared."
    )
    return f"> **These rows come from {machines}.** {how}"


def plain(warning: str) -> str:
    """A warning without its marks."""
    return warning.lstrip("> ").replace("**", "").replace("`", "")


def interruption(rows: Iterable[Row], environment: Mapping[str, Any]) -> list[str]:
    """How many processes are missing that environment.json says were planned; nothing where it does not say."""
    planned = environment.get("planned_processes")
    counts = planned if isinstance(planned, dict) else {}
    wanted = {kind: number for kind, number in counts.items() if isinstance(number, int)}
    there = Counter(row.kind for row in rows)
    missing = sum(max(number - there[kind], 0) for kind, number in wanted.items())
    if not missing:
        return []
    return [
        f"> **Interrupted: {missing:,} of {sum(wanted.values()):,} planned processes are missing.** "
        "`convbench run --resume DIR` completes it, where DIR is the directory of this run."
    ]


def group_markdown(group: Group) -> str:
    """One group as a Markdown table."""
    shown = columns_of(group)
    lines = [
        f"| {' | '.join(column.heading(group) for column in shown)} |",
        f"| {' | '.join('---:' if column.numeric else '---' for column in shown)} |",
    ]
    lines += [f"| {' | '.join(escape(column.cell(line)) for column in shown)} |" for line in group.lines]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, the text of a line's cell, and what the heading means.

    It is shown where a line has something in it, or `always`. On a narrow terminal the column with the highest
    number gives way first: from `shortens` it shows its `short` cells, from `drops` it is left out.
    """

    title: str
    cell: Callable[[Line], str]
    meaning: str = ""
    numeric: bool = True
    always: bool = False
    short: Callable[[Line], str] | None = None
    shortens: int = 0
    drops: int = 0

    def heading(self, group: Group) -> str:
        """The title; the first column is named after what the lines are, an accuracy may be a loss."""
        losses = [line.accuracy.is_loss for line in group.lines if line.accuracy]
        if self.cell is accuracy and losses and all(losses):
            return column(Summary, "val_loss").heading
        return self.title or group.subject

    def belongs(self, subject: str) -> bool:
        """Whether it is for lines of this subject: parameters are those of architectures."""
        return self.title != "parameters" or subject == "architecture"


def of(name: str, cell: Callable[[Line], str] | None = None, meaning: str = "", **options: Any) -> Column:
    """A column of `Summary`, with its heading, and with its texts and meaning unless others are given."""
    known = column(Summary, name)
    usual = {"numeric": known.type is not str}
    text = cell or (lambda line: known.text(getattr(line, name)))
    return Column(known.heading, text, meaning or known.description, **(usual | options))


def columns_of(group: Group) -> list[Column]:
    """The columns that have something to say about this group."""
    return [
        each
        for each in COLUMNS
        if each.belongs(group.subject)
        and (each.always or any(each.cell(line) != EMPTY for line in group.lines))
    ]


def others(failure: Failure) -> str:
    """How many combinations failed alike."""
    return f" and {failure.alike} more like it" if failure.alike else ""


def quantiles(line: Line) -> str:
    """The range of the steps."""
    return EMPTY if line.step_ms_p10 is None else f"{number(line.step_ms_p10)}–{number(line.step_ms_p90)}"


def served(line: Line) -> str:
    """The share of the FLOPs that the backend computed; op by op where it did not do all that it could."""
    partial = line.attribution.partial
    if not partial:
        return column(Summary, "coverage").text(line.coverage)
    return f"PARTLY: {', '.join(f'{each.op} {share(each.fraction)}' for each in partial)}"


def ratio(line: Line) -> str:
    """The speed relative to the baseline's, with its interval."""
    interval = line.speedup_interval
    span = f" ({number(interval.low)}–{number(interval.high)})" if interval else ""
    return column(Summary, "speedup").text(line.speedup) + span


def accuracy(line: Line) -> str:
    """What training reached, and what it took."""
    reached = line.accuracy
    if reached is None:
        return EMPTY
    took = []
    if reached.epochs is not None:
        took.append(f"{reached.epochs:.3g} epoch{'' if reached.epochs == 1 else 's'}")
    if reached.seconds is not None:
        took.append(f"{reached.seconds:.3g} s")
    return f"{spread(reached)}{' after ' * bool(took)}{', '.join(took)}{' (budget)' * reached.budgeted}"


def spread(reached: Accuracy) -> str:
    """The mean over seeds, with their range where there are several."""
    seeds = f" ({reached.low:.3f}–{reached.high:.3f}, {reached.seeds} seeds)" if reached.seeds > 1 else ""
    return f"{reached.mean:.3f}{seeds}"


def value(line: Line) -> str:
    """What finished trainings reached, and nothing else."""
    reached = line.accuracy
    return EMPTY if reached is None or reached.budgeted else f"{reached.mean:.3f}"


QUANTILES = Column("p10–p90, ms", quantiles, "the range that holds eight of ten steps", drops=70)
COVERAGE = of(
    "coverage",
    served,
    short=lambda line: "PARTLY" if line.attribution.partial else served(line),
    shortens=85,
    drops=30,
)
COLUMNS = (
    Column("", lambda line: line.name, numeric=False, always=True),
    of("parameters", drops=25),
    of("images_per_second", always=True),
    of("step_ms", drops=50),
    QUANTILES,
    of("processes", drops=80),
    of(
        "speedup",
        ratio,
        f"{column(Summary, 'speedup').description}; in brackets its 95 % interval over processes",
        short=of("speedup").cell,
        shortens=40,
        drops=5,
    ),
    of("val_accuracy", accuracy, numeric=False, short=value, shortens=90, drops=10),
    of("shifted_val_accuracy", drops=20),
    COVERAGE,
    of(
        "derived_backward",
        lambda line: "derived" if line.derived_backward else EMPTY,
        "`derived` where gradients are computed by the forward ops, which takes longer",
        drops=55,
    ),
    of("max_error", drops=60),
    of("status", lambda line: line.status if line.status == "ok" else line.status.upper(), always=True),
)


def print_table(out: Console, run: Path | str | Iterable[Row], *, rank: Rank = "served") -> None:
    """Show the comparison table of a run directory, or of rows, on a terminal."""
    table, environment = load(run, rank)
    left_out: dict[str, None] = {}
    for note in warnings(table, environment):
        say(out, plain(note), "bold red")
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


def terminal_columns(group: Group) -> list[terminal.Column]:
    """The columns of a group, with how each gives way where the terminal is narrow."""
    return [
        terminal.Column(
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
