"""The raw step times of a run, by process."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from convbench.registry.errors import UsageError
from convbench.results.cells import from_cell
from convbench.results.schema import COMBINATION, Combination, Sample, columns

Process = tuple[Combination, int]  # and its round


def step_times(path: Path) -> Mapping[Process, list[float]]:
    """The step times in samples.csv, in milliseconds, by combination and round; empty without the file.

    Raises:
        UsageError: the file is not a samples.csv, or a cell does not fit its column.
    """
    if not path.exists():
        return {}
    known = {column.name: column for column in columns(Sample)}
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = csv.reader(file)
        names = next(lines, [])
        if missing := [name for name in known if name not in names]:
            raise UsageError(f"{path} lacks the columns {', '.join(missing)}")
        keys = [names.index(name) for name in (*COMBINATION, "round")]
        step = names.index("step_ms")
        for cells in lines:
            if len(cells) == len(names) and cells[step]:  # a record that a kill cut short has fewer
                try:
                    times[tuple([cells[key] for key in keys])].append(float(cells[step]))
                except ValueError:
                    where = f"{path}, line {lines.line_num}"
                    raise UsageError(f"{where}: column step_ms is {cells[step]!r}, not a number") from None
    return {process(cells, f"{path}"): values for cells, values in times.items()}


def process(cells: tuple[str, ...], where: str) -> Process:
    """Read combination and round back from their cells."""
    known = {column.name: column for column in columns(Sample)}
    values = [
        from_cell(cell, known[name], where) for name, cell in zip((*COMBINATION, "round"), cells, strict=True)
    ]
    return Combination(*values[:-1]), int(values[-1] or 0)  # type: ignore[arg-type]  # typed by their columns
