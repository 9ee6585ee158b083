"""The raw step times of a run, by process."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from convbench.registry.errors import UsageError
from convbench.results.schema import COMBINATION, Combination, Sample, columns
from convbench.results.storage.csv_format import from_cell
from convbench.results.storage.opening import opened

Process = tuple[Combination, int]  # and its round


def step_times(path: Path) -> Mapping[Process, list[float]]:
    """The step times in samples.csv, in milliseconds, by combination and round; empty without the file.

    Raises:
        UsageError: the file is not a samples.csv, or a cell does not fit its column.
    """
    if not path.exists():
        return {}
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    first: dict[tuple[str, ...], str] = {}  # where its first step is, to be named in errors
    known = next(column for column in columns(Sample) if column.name == "step_ms")
    with opened(path, Sample) as file:
        keys = [file.names.index(name) for name in (*COMBINATION, "round")]
        step = file.names.index("step_ms")
        for where, cells in file.rows():
            if cells[step]:
                who = tuple([cells[key] for key in keys])
                if who not in times:
                    first[who] = where
                step_ms = float(from_cell(cells[step], known, where) or 0)
                if not 0 < step_ms < math.inf:
                    raise UsageError(f"{where}: step_ms is {step_ms:g}; a time is a number above zero")
                times[who].append(step_ms)
    return {process(cells, first[cells]): values for cells, values in times.items()}


def process(cells: tuple[str, ...], where: str) -> Process:
    """Read combination and round back from their cells."""
    known = {column.name: column for column in columns(Sample)}
    values = [
        from_cell(cell, known[name], where) for name, cell in zip((*COMBINATION, "round"), cells, strict=True)
    ]
    return Combination(*values[:-1]), int(values[-1] or 0)  # type: ignore[arg-type]  # typed by their columns
