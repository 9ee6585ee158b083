"""JSON files of pytest-benchmark: read as processes that timed something, and written from a run."""

from __future__ import annotations

import bisect
import hashlib
import json
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from convbench.registry.errors import NothingRan, UsageError, shown
from convbench.results.schema import COMBINATION, CONDITIONS, MEASURED, Combination, Row, columns
from convbench.results.storage.csv_format import Process, from_cell, read_records, step_times
from convbench.results.storage.environment import cpu_model, logical_cores
from convbench.results.storage.files import open_file, read_json, write_or_refuse
from convbench.results.storage.reader import results_file

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
        with open_file(path) as file:
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


VERSION = "5.0.0"  # of pytest-benchmark, whose files these are like
# what is told of a benchmark besides its combination
FACTS = (
    *CONDITIONS,
    "parameters",
    "flops_per_image",
    "step_flops_per_image",
    "served_flops_fraction",
    "convbench_version",
    "plugin",
    "plugin_version",
)


def write_pytest_benchmark(run_dir: Path | str, target: Path) -> Path:
    """Write the timed steps of a run, a benchmark for each combination, and return the file's path.

    Raises:
        UsageError: the directory holds no run, or the file cannot be written.
        NothingRan: no step of it was timed.
    """
    path = results_file(Path(run_dir))
    benchmarks = list(exported(read_records(path, Row), step_times(path.parent / "samples.csv")))
    if not benchmarks:
        raise NothingRan(f"no benchmark for {target}: no step was timed")
    content = {
        "machine_info": {
            "node": platform.node(),
            "machine": platform.machine(),
            "system": platform.system(),
            "release": platform.release(),
            "python_version": platform.python_version(),
            "cpu": {"brand_raw": cpu_model(), "count": logical_cores()},
        },
        "commit_info": {},
        "benchmarks": benchmarks,
        "datetime": datetime.now(UTC).isoformat(),
        "version": VERSION,
    }
    return write_or_refuse(target, json.dumps(content, indent=4) + "\n")


def exported(rows: Iterable[Row], samples: Mapping[Process, list[float]]) -> Iterator[dict[str, Any]]:
    """A benchmark for each combination that was timed; its data are the steps of all of its processes."""
    timed: dict[Combination, dict[int, Row]] = {}
    for row in rows:
        if row.kind == "time":  # the last row of a process counts
            timed.setdefault(row.combination, {})[row.round] = row
    for combination, rounds in timed.items():
        good = {
            number: row for number, row in rounds.items() if row.status in MEASURED and row.step_ms_median
        }
        if not good:
            continue
        row = next(iter(good.values()))
        medians = [row.step_ms_median or 0.0 for row in good.values()]
        steps = [step for number in good for step in samples.get((combination, number), ())]
        facts = {name: getattr(row, name) for name in (*COMBINATION, *FACTS)}
        yield {
            "group": " ".join(
                (
                    combination.architecture,
                    f"b{combination.batch_size}",
                    combination.dtype,
                    combination.device,
                )
            ),
            "name": combination.label,
            "fullname": f"{row.suite}::{combination.label}",
            "params": {"backend": combination.backend},
            "param": combination.backend,
            "extra_info": {
                **{name: value for name, value in facts.items() if value is not None},
                PROCESSES: medians,
            },
            "options": {},
            "stats": stats([step / 1000 for step in steps or medians]),
        }


def stats(seconds: Sequence[float]) -> dict[str, Any]:
    """What pytest-benchmark tells of a benchmark's rounds; its quartiles are Tukey's hinges."""
    data, count = sorted(seconds), len(seconds)
    half = (count + 1) // 2
    q1, median, q3 = (statistics.median(part) for part in (data[:half], data, data[-half:]))
    mean, deviation = statistics.mean(data), statistics.stdev(data) if count > 1 else 0.0
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    beyond = sum(not mean - deviation <= value <= mean + deviation for value in data)
    outliers = sum(not low <= value <= high for value in data)
    return {
        "min": data[0],
        "max": data[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": count,
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outliers,
        "stddev_outliers": beyond,
        "outliers": f"{beyond};{outliers}",
        "ld15iqr": data[bisect.bisect_left(data, low)],
        "hd15iqr": data[bisect.bisect_right(data, high) - 1],
        "ops": 1 / mean,
        "total": sum(data),
        "data": list(seconds),
        "iterations": 1,
    }
