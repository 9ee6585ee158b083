"""Writes columns and facts into results/README.md: `python -m convbench.results.tables.documentation FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from convbench.registry.errors import UsageError
from convbench.results.schema import FILES, Row, Summary, columns
from convbench.results.storage.environment import FACTS
from convbench.results.storage.reader import dtype

BEGIN, END = (
    "<!-- generated: python -m convbench.results.tables.documentation -->",
    "<!-- end of generated -->",
)


def columns_markdown() -> str:
    """Every file of a run with its columns; of results.csv also the pandas types of `read_results`."""
    parts = []
    for name, record in FILES.items():
        summary = (record.__doc__ or "").splitlines()[0].partition(": ")[2]
        rows = [
            (
                f"`{each.name}`",
                each.type.__name__ + ", may be empty" * (not each.required),
                *([f"`{dtype(each.name, each)}`"] if record is Row else []),
                each.unit,
                each.description,
            )
            for each in columns(record)
        ]
        headings = ["column", "type", *(["in pandas"] if record is Row else []), "unit", "meaning"]
        text = summary[:1].upper() + summary[1:]
        parts.append(f"### {name}\n\n{text}\n\n{table(headings, rows)}")
    shown = [
        (f"`{each.name}`", each.type.__name__, each.heading, each.unit, each.description)
        for each in columns(Summary)
    ]
    parts.append(
        "### The table of a run\n\nThe columns of `.table()`, a row for each combination over its processes and "
        "seeds, with the headings that tables show.\n\n"
        + table(("column", "type", "heading", "unit", "meaning"), shown)
    )
    facts = [(f"`{name}`", fact.unit, fact.description) for name, fact in FACTS.items()]
    parts.append(
        "### environment.json\n\nWhat the run ran on; null where the machine does not tell.\n\n"
        + table(("key", "unit", "meaning"), facts)
    )
    return "\n".join(parts)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("  ", " ") for line in lines)


def with_columns(text: str) -> str:
    """A README with its generated part brought up to date.

    Raises:
        UsageError: the marks around the generated part are missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"there is no place for the columns: {BEGIN} and {END} mark it")
    return f"{head}{BEGIN}\n\n{columns_markdown()}\n{END}{tail}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(with_columns(readme.read_text(encoding="utf-8")), encoding="utf-8")
