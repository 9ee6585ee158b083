"""Reads the JSON files of pytest-benchmark as processes that timed something."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from convbench.registry.errors import UsageError, shown
from convbench.results.cells import from_cell
from convbench.results.opening import read_json
from convbench.results.schema import COMBINATION, Combination, Row, columns

if TYPE_CHECKING:
    import pandas as pd


MOST = sys.float_info.max / 1e6
PROCESSES = "step_ms_of_processes"  # of extra_info: a median for each process, where there were several


def read_pytest_benchmark(paths: Sequence[Path]) -> pd.DataFrame:
    """Read files as `time` rows, one per benchmark and file: a file is one process, whatever its rounds.

    One that `convbench run --pytest-json` wrote holds several processes of each combination. What a benchmark
    put into its `extra_info` under the name of a column of results.csv is taken from there. A benchmark that
    names no architecture is known by its full name alone.

    Raises:
        UsageError: a file cannot be read, or is none of pytest-benchmark's.
    """
    import pandas as pd

    rows = [row for path in paths for row in read_file(path)]
    return pd.DataFrame(rows, columns=[column.name for column in columns(Row)])


def looks_like_json(path: Path) -> bool:
    """Whether a file begins as JSON does."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def read_file(path: Path) -> list[dict[str, Any]]:
    """The rows of one file."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise UsageError(f"{path} is not a file of pytest-benchmark: it has no list 'benchmarks'")
    machine = content.get("machine_info")
    shared = machine_columns(machine if isinstance(machine, dict) else {})
    return [
        row
        for at, each in enumerate(content["benchmarks"])
        for row in read_benchmark(each, f"{path}, benchmark {at}", path, shared)
    ]


def machine_columns(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What the file tells of its machine; not its host name, for a container has a new one each time."""
    cpu = machine.get("cpu")
    cpu = cpu if isinstance(cpu, dict) else {}
    facts = [cpu.get("brand_raw"), cpu.get("count"), machine.get("machine"), machine.get("system")]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return {"device_name": cpu.get("brand_raw"), "machine_id": f"pytest-benchmark {digest}"}


def read_benchmark(
    benchmark: Any, where: str, path: Path, shared: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """One benchmark as the columns of a row, or of one for each of its processes.

    Raises:
        UsageError: it has no name, or no median time above zero.
    """
    benchmark = benchmark if isinstance(benchmark, dict) else {}
    name = benchmark.get("fullname") or benchmark.get("name")
    stats, extra = benchmark.get("stats"), benchmark.get("extra_info")
    seconds = stats.get("median") if isinstance(stats, dict) else None
    if not isinstance(name, str):
        raise UsageError(f"{where} has no name")
    if not is_time(seconds):
        raise UsageError(f"{where} ({name}) has no median time above zero")
    row: dict[str, Any] = {column.name: None for column in columns(Row)}
    row.update(vars(Combination(name, "", "", "", 0, "", "", 0)), **shared)
    known = typed(extra, where) if isinstance(extra, dict) else {}
    named = "architecture" in known
    row.update({key: value for key, value in known.items() if named or key not in COMBINATION})
    # a file is a run: another file's processes did not take turns with these
    measured = {"kind": "time", "status": "ok", "run_id": str(path)}
    for number, step_ms in enumerate(processes(extra, where) or [seconds * 1e3]):
        yield {**row, **measured, "round": number, "step_ms_median": step_ms}


def processes(extra: Any, where: str) -> list[float]:
    """The times of several processes in milliseconds, where a benchmark has them.

    Raises:
        UsageError: they are no list of numbers above zero.
    """
    found = extra.get(PROCESSES, []) if isinstance(extra, dict) else []
    if not isinstance(found, list) or not all(map(is_time, found)):
        raise UsageError(f"{where}: {PROCESSES} is {shown(found)}, not a list of times above zero")
    return list(map(float, found))


def is_time(value: Any) -> TypeGuard[float]:
    """Whether it is a number above zero that is finite in seconds and in milliseconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < MOST


def typed(extra: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is said under the name of a column, in the type of that column.

    Raises:
        UsageError: a number that is too large for a table.
    """
    found: dict[str, Any] = {}
    for column in columns(Row):
        value = extra.get(column.name)
        fits = isinstance(value, (int, float) if column.type is float else column.type)
        if fits and not isinstance(value, bool):
            found[column.name] = value if column.type is str else from_cell(str(value), column, where)
    return found
