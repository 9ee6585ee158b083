"""Everything that a run directory holds, read once, for whoever shows it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from convbench.results.attribution import Rank
from convbench.results.cells import read_records
from convbench.results.reading import results_file
from convbench.results.samples import Process, step_times
from convbench.results.schema import Epoch, Row
from convbench.results.summary import Group, Race, Table, comparison_table, race


@dataclass(frozen=True)
class Contents:
    """A run: `rows` are all of its rows, those of `table` the ones that count.

    `samples` holds the step times of each process in milliseconds; `suite` is the text of suite.toml.
    """

    name: str
    rows: tuple[Row, ...]
    table: Table
    epochs: tuple[Epoch, ...] = ()
    samples: Mapping[Process, list[float]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    suite: str = ""

    @cached_property
    def by_line(self) -> Mapping[tuple[Race, str], list[Row]]:
        """The rows that count, by what line of which race they belong to."""
        found: dict[tuple[Race, str], list[Row]] = defaultdict(list)
        for group in self.table.groups[:1]:
            for row in self.table.rows:
                names = row.backend, row.architecture
                name, shared = names if group.subject == "backend" else names[::-1]
                found[race(row, shared), name].append(row)
        return found

    def rows_of(self, group: Group, name: str) -> Sequence[Row]:
        """The rows behind one line."""
        return self.by_line.get((group.race, name), ())


def read_contents(run_dir: Path | str, *, rank: Rank = "served") -> Contents:
    """Read a run directory; only its results.csv has to be there.

    Competitors that left convolutions to torch are not ranked, unless `rank` is "all".

    Raises:
        UsageError: there is no results.csv, or a file of the run cannot be read.
    """
    path = results_file(Path(run_dir))
    directory = path.parent
    rows = read_records(path, Row)
    samples = step_times(directory / "samples.csv")
    curves = directory / "curves.csv"
    return Contents(
        name=directory.absolute().name,
        rows=tuple(rows),
        table=comparison_table(rows, samples, rank=rank),
        epochs=tuple(read_records(curves, Epoch)) if curves.exists() else (),
        samples=samples,
        environment=read_environment(directory / "environment.json"),
        suite=read_text(directory / "suite.toml"),
    )


def read_environment(path: Path) -> Mapping[str, Any]:
    """What environment.json tells; nothing where it is missing or broken, for the rows name the device."""
    with suppress(ValueError):
        found = json.loads(read_text(path) or "{}")
        return found if isinstance(found, dict) else {}
    return {}


def read_text(path: Path) -> str:
    """A text file that may be missing."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
