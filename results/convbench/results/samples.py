"""The raw step times of a run, by process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from convbench.registry.errors import UsageError
from convbench.results.cells import from_cell
from convbench.results.opening import opened
from convbench.results.schema import COMBINATION, Combination, Sample, columns

Process = tuple[Combination, int]  # and its round


def step_times(path: Path) -> Mapping[Process, list[float]]:
    """The step times in samples.csv, in milliseconds, by combination and round; empty without the file.

    Raises:
        UsageError: the file is not a samples.csv, or a cell does not fit its column.
    """
    if not path.exists():
        return {}
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    with opened(path, Sample) as file:
        keys = [file.names.index(name) for name in (*COMBINATION, "round")]
        step = file.names.index("step_ms")
        for where, cells in file.rows():
            if cells[step]:
                try:
                    times[tuple([cells[key] for key in keys])].append(float(cells[step]))
                except ValueError:
                    raise UsageError(f"{where}: column step_ms is {cells[step]!r}, not a number") from None
    return {process(cells, f"{path}"): values for cells, values in times.items()}


def process(cells: tuple[str, ...], where: str) -> Process:
    """Read combination and round back from their cells."""
    known = {column.name: column for column in columns(Sample)}
    values = [
        from_cell(cell, known[name], where) for name, cell in zip((*COMBINATION, "round"), cells, strict=True)
    ]
    return Combination(*values[:-1]), int(values[-1] or 0)  # type: ignore[arg-type]  # typed by their columns
