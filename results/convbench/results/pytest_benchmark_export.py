"""Writes a run as a JSON file of pytest-benchmark, for the tools that read those."""

from __future__ import annotations

import bisect
import json
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convbench.registry.errors import NothingRan
from convbench.results.cells import read_records
from convbench.results.machine import cpu_model, logical_cores
from convbench.results.pytest_benchmark import PROCESSES
from convbench.results.reading import results_file
from convbench.results.report import write_text
from convbench.results.samples import Process, step_times
from convbench.results.schema import COMBINATION, MEASURED, Combination, Row

VERSION = "5.0.0"  # of pytest-benchmark, whose files these are like
# what is told of a benchmark besides its combination
FACTS = (
    "threads",
    "dataset",
    "train_images",
    "recipe",
    "flush_denormal",
    "fused",
    "cudnn",
    "beside",
    "parameters",
    "flops_per_image",
    "step_flops_per_image",
    "served_flops_fraction",
    "convbench_version",
    "plugin",
    "plugin_version",
    "torch_version",
    "device_name",
    "machine_id",
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
    return write_text(target, json.dumps(content, indent=4) + "\n")


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
