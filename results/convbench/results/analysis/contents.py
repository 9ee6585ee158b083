"""Reads a run directory once, for tables, charts and pages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbench.registry.errors import UsageError, shown
from convbench.results.analysis.coverage import Rank
from convbench.results.analysis.standings import Table, comparison_table
from convbench.results.schema import Epoch, Row
from convbench.results.storage.csv_format import Process, read_records, step_times
from convbench.results.storage.files import read_json, read_text
from convbench.results.storage.reader import results_file

SHOWN: Mapping[str, Any] = {  # what a report reads of environment.json
    "cpu_model": str,
    "logical_cores": int,
    "memory_gb": int | float,
    "operating_system": str,
    "peaks": dict,
    "planned_processes": dict,
    "python": str,
    "torch_build": str,
}


@dataclass(frozen=True)
class Contents:
    """A run: `rows` are all of its rows; those of `table` are the last of each process, which count.

    `samples` holds the step times of each process in milliseconds; `suite` is the text of suite.toml.
    """

    name: str
    rows: tuple[Row, ...]
    table: Table
    epochs: tuple[Epoch, ...] = ()
    samples: Mapping[Process, list[float]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    suite: str = ""


def read_contents(run_dir: Path | str, *, rank: Rank = "served") -> Contents:
    """Read a run directory; only its results.csv has to be there.

    Backends that left convolutions to torch are not ranked, unless `rank` is "all".

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
        table=comparison_table(rows, rank=rank),
        epochs=tuple(read_records(curves, Epoch)) if curves.exists() else (),
        samples=samples,
        environment=read_environment(directory / "environment.json"),
        suite=read_or_warn(directory / "suite.toml", read_text) or "",
    )


def read_environment(path: Path) -> Mapping[str, Any]:
    """The facts of environment.json; none where it is missing, since the rows name the device.

    A fact of the wrong type is left out with a warning.
    """
    found = read_or_warn(path, read_json)
    if found is None:
        return {}
    if not isinstance(found, dict):
        done_without(f"{path} is no JSON object")
        return {}
    for name in [name for name, kind in SHOWN.items() if not isinstance(found.get(name), kind | None)]:
        done_without(f"{path}: {name} is {shown(found.pop(name))}")
    return found


def read_or_warn(path: Path, read: Callable[[Path], Any]) -> Any:
    """What a file holds; None where it is missing, or cannot be read, with a warning."""
    if not path.exists():
        return None
    try:
        return read(path)
    except UsageError as error:
        return done_without(str(error))


def done_without(why: str) -> None:
    """Warn of a file, or a part of one, that the report does without."""
    warnings.warn(f"{why}; the report does without it", stacklevel=3)
