"""The tables of a comparison's page: what is said of every pair is said once, above them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.formats import Section, sections
from convbench.results.comparison.pairing import without_shared
from convbench.results.tables.html import HtmlTable, table

NOTE = "note"
PARTS = "; "  # between the remarks of one note


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
