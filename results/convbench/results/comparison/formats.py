"""A comparison as text: a table for a terminal, Markdown, CSV or JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import NamedTuple

from convbench.registry.cli.terminal import PIPED, Column, table_text, wrapped
from convbench.registry.errors import listed
from convbench.results.analysis.significance import ALPHA, MIN_POINTS, effect
from convbench.results.comparison.compare import AccuracyPair, Comparison, TimePair
from convbench.results.comparison.history import Trend
from convbench.results.comparison.pairing import PARTS, Left, name, without_shared
from convbench.results.schema import COMBINATION
from convbench.results.storage.csv_format import guard, line
from convbench.results.tables.escaping import escape, flatten

JSON_FORMAT = 1  # raised where a reader of the one before would go wrong
TOLD_BELOW = ("note", "reason")
NAMED = 8  # combinations that a note is of
WRAPS = {"trend": 8, "level changed": 24, "change (95 % interval)": 16}
SHOWN = 50  # of what was left out; CSV and JSON hold it all


class Section(NamedTuple):
    """A titled table of texts."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def sections(comparison: Comparison) -> Iterator[Section]:
    """The tables of a comparison."""
    base, new = comparison.files[0], comparison.files[1]
    file: list[str] = []
    if len(comparison.files) > 2:
        file, new = ["file"], "new"
    if comparison.times:
        machine = ["machine"] * any(pair.machine_kind for pair in comparison.times)
        headings = ["combination", f"{base}, ms", f"{new}, ms", "ratio (95 % interval)", "verdict", "note"]
        yield section(
            "Step time: a ratio above 1 is slower",
            [*file, *machine, *headings],
            [
                [pair.file] * len(file) + [pair.machine_kind or "all"] * len(machine) + time_cells(pair)
                for pair in comparison.times
            ],
        )
    if comparison.accuracies:
        yield section(
            "Validation accuracy",
            [*file, "combination", base, new, "change (95 % interval)", "verdict", "note"],
            [[pair.file] * len(file) + accuracy_cells(pair) for pair in comparison.accuracies],
        )
    if comparison.trends:
        yield Section(
            "History of the step time",
            [
                "combination",
                *(f"{each}, ms" for each in comparison.files),
                "change (95 % interval)",
                "trend",
                "level changed",
            ],
            [trend_cells(trend) for trend in comparison.trends],
        )
    if left := comparison.left_out:
        yield Section(
            f"Not compared: {len(left)}" + f", of which {SHOWN} are shown" * (len(left) > SHOWN),
            [*file, "combination", "reason"],
            [[each.file] * len(file) + [name(each.combination), each.reason] for each in left[:SHOWN]],
        )


def section(title: str, headings: list[str], rows: list[list[str]]) -> Section:
    """A section, without its last column, the notes, where there are none."""
    if any(row[-1] for row in rows):
        return Section(title, headings, rows)
    return Section(title, headings[:-1], [row[:-1] for row in rows])


def time_cells(pair: TimePair) -> list[str]:
    """A pair of step times as texts."""
    verdict: str = pair.verdict
    if verdict == "unclear":
        verdict += f" (shows from {effect(pair.detectable)})"
    return [
        name(pair.combination),
        f"{pair.base_ms:.4g} (n={pair.base_processes})",
        f"{pair.new_ms:.4g} (n={pair.new_processes})",
        f"{pair.ratio:.3f} ({pair.low:.3f} to {pair.high:.3f})",
        verdict,
        pair.note,
    ]


def accuracy_cells(pair: AccuracyPair) -> list[str]:
    """A pair of accuracies as texts."""
    interval = "" if pair.low is None or pair.high is None else f" ({pair.low:+.4f} to {pair.high:+.4f})"
    verdict: str = pair.verdict
    if verdict == "unclear" and pair.detectable is not None:
        verdict += f" (shows from {pair.detectable:.3f})"
    return [
        name(pair.combination).rpartition("/s")[0] or name(pair.combination),
        f"{pair.base_accuracy:.4f} (n={pair.base_seeds})",
        f"{pair.new_accuracy:.4f} (n={pair.new_seeds})",
        f"{pair.change:+.4f}{interval}",
        verdict,
        pair.note,
    ]


def trend_cells(trend: Trend) -> list[str]:
    """A history as texts."""
    interval = "" if trend.low is None or trend.high is None else f" ({trend.low:.3f} to {trend.high:.3f})"
    times = ["–" if value is None else f"{value:.4g}" for value in trend.step_ms]
    changes = "; ".join(f"at {each.file} to {each.ratio:.3f} of before" for each in trend.changes)
    return [name(trend.combination), *times, f"{trend.change:.3f}{interval}", trend.verdict, changes or "–"]


HISTORY = (
    " In a history, a file is one observation: change is that of a straight line from the first to the last, "
    "trend whether it is more than scatter, and a level is changed where at least two files differ from at "
    "least two before by more than scatter."
)


BY_KIND = " machine: ratios that differ between kinds of machines have a line for each kind."


def legend(comparison: Comparison) -> str:
    """What the verdicts mean, in this comparison."""
    return (
        "n counts processes (for accuracies, seeds). faster, slower, higher, lower: the difference exceeds "
        f"{100 * comparison.min_effect:.3g} % of the base (for accuracies {100 * MIN_POINTS:.3g} percentage "
        f"point), and its p-value, corrected for all pairs, is below {ALPHA:g}. same: the interval lies within "
        "that. unclear: this data cannot tell; if a size is given, only a larger difference would show."
        + BY_KIND * any(pair.machine_kind for pair in comparison.times)
        + HISTORY * bool(comparison.trends)
    )


def as_markdown(comparison: Comparison) -> str:
    """Markdown tables."""
    parts = [f"# {escape(' and '.join(comparison.files))}\n"]
    for title, headings, rows in sections(comparison):
        parts.append(f"## {escape(title)}\n")
        parts.append(f"| {' | '.join(map(escape, headings))} |\n|{' --- |' * len(headings)}")
        parts += [f"| {' | '.join(map(escape, row))} |" for row in rows]
        parts.append("")
    remarks = [*comparison.remarks, *filter(None, [comparison.advice])]
    parts += [f"- {escape(remark)}." for remark in remarks] + [""] * bool(remarks)
    return "\n".join([*parts, legend(comparison)]) + "\n"


def as_table(comparison: Comparison, width: int = PIPED) -> str:
    """Plain tables for a terminal of that many columns, each with its notes and reasons below, said once."""
    parts = []
    for title, headings, rows in sections(comparison):
        at = headings.index("combination")
        names, shared = without_shared([row[at] for row in rows])
        texts = [[*row[:at], name, *row[at + 1 :]] for row, name in zip(rows, names, strict=True)]
        below = [f"all of these: {shared}"] if shared else []
        if headings[-1] in TOLD_BELOW:
            below += told_once([" in ".join(row[at::-1]) for row in texts], [row[-1] for row in rows])
            headings = headings[:-1]
        parts += wrapped(flatten(title), width)
        if len(headings) > at + 1:
            columns = [
                column(heading, [row[at] for row in texts], headings) for at, heading in enumerate(headings)
            ]
            parts += table_text(columns, width).splitlines()
        parts += [part for each in below for part in wrapped(flatten(each), width)]
        parts.append("")
    for remark in filter(None, [*comparison.remarks, comparison.advice]):
        parts += wrapped(flatten(f"{remark}."), width)
    return "\n".join([*parts, *wrapped(flatten(legend(comparison)), width)]) + "\n"


def told_once(names: Sequence[str], notes: Sequence[str]) -> list[str]:
    """Each note with the names that it is of; notes of the same names are one."""
    found: dict[str, list[str]] = {}
    for whose, own in zip(names, notes, strict=True):
        for note in filter(None, own.split(PARTS)):
            found.setdefault(note, []).append(whose)
    together: dict[tuple[str, ...], list[str]] = {}
    for note, those in found.items():
        together.setdefault(tuple(those), []).append(note)
    return [f"{of_all(those, len(names))}: {PARTS.join(said)}" for those, said in together.items()]


def of_all(names: Sequence[str], number: int) -> str:
    """Some names of a number of names, in a line."""
    if len(names) == number > 1:
        return "all of these"
    return listed(names, NAMED, last=", ")


def column(heading: str, cells: list[str], headings: list[str]) -> Column:
    """A column of a table for a terminal: on a narrow one, of a pair only ratio and verdict are shown."""
    files = headings[headings.index("combination") + 1 :][:2] if "verdict" in headings else []
    return Column(
        flatten(heading),
        [flatten(cell) for cell in cells],
        wraps=WRAPS.get(heading, 0),
        short=[cell.partition(" (")[0] for cell in cells],
        shortens={"verdict": 9, "ratio (95 % interval)": 7}.get(heading, 0),
        drops=8 if heading in files else 0,
    )


PAIR_COLUMNS = [field.name for pair in (TimePair, AccuracyPair) for field in fields(pair)]
CSV_COLUMNS = [
    name
    for name in dict.fromkeys(["measure", "file", *COMBINATION, "verdict", *PAIR_COLUMNS, "reason", "lost"])
    if name != "combination"
]
PAIR_TABLE = [name for name in CSV_COLUMNS if name not in ("reason", "lost")]


def records(comparison: Comparison) -> Iterator[dict[str, object]]:
    """Each pair by column, then each combination that was left out, with a reason and no measure."""
    found: Mapping[str, Sequence[TimePair | AccuracyPair | Left]] = {
        "step_ms": comparison.times,
        "val_accuracy": comparison.accuracies,
        "": comparison.left_out,
    }
    for measure, pairs in found.items():
        for pair in pairs:
            yield {**asdict(pair), **asdict(pair.combination), "measure": measure}


def as_csv(comparison: Comparison) -> str:
    """One table: a row per pair, and one per combination that was left out, with a reason and no verdict."""
    text = io.StringIO()
    text.write(line(CSV_COLUMNS))
    for values in records(comparison):
        text.write(line(csv_cell(values.get(column)) for column in CSV_COLUMNS))
    return text.getvalue()


def csv_cell(value: object) -> str:
    """A number with nine digits, a text that no spreadsheet runs."""
    if isinstance(value, (int, float)):
        return str(value) if isinstance(value, int) else format(value, ".9g")
    if isinstance(value, Mapping):
        return " ".join(f"{guard(str(key))}={number}" for key, number in value.items())
    return "" if value is None else guard(str(value))


def as_json(comparison: Comparison) -> str:
    """Everything, as JSON; `schemas/comparison.schema.json` says what is in it."""
    return json.dumps({"format": JSON_FORMAT, **asdict(comparison)}, indent=2, allow_nan=False) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "table": as_table,
    "csv": as_csv,
    "markdown": as_markdown,
    "json": as_json,
}
