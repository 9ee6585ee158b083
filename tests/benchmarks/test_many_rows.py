"""`convbench compare` on a million rows, and the pages of two thousand."""

from __future__ import annotations

import csv
import io
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from many_rows import write_rows

from convbench.results.report.write import write_all

ROUNDS = 3
LIMIT_SECONDS, LIMIT_MB = 5.0, 1000.0
LIMIT_PAGE_SECONDS = 1.5  # per 2,000 rows, charts and all
COMMAND = (sys.executable, "-m", "convbench.registry", "compare")


def test_a_million_rows_are_compared_in_time_and_memory(benchmark: Any, tmp_path: Path) -> None:
    """Processor time is what is held to its limit: it is the same on a machine that does other things too."""
    files = [tmp_path / "base.csv", tmp_path / "new.csv"]
    rows = [
        write_rows(path, combinations=1000, rounds=100, runs=5, slower=slower, seed=seed)
        for seed, (path, slower) in enumerate(zip(files, (1.0, 1.1), strict=True))
    ]
    assert sum(rows) == 1_000_000
    seconds: list[float] = []
    peaks: list[float] = []

    def compare() -> None:
        process = subprocess.Popen(
            [*COMMAND, *map(str, files), "--format", "csv"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        found = list(csv.DictReader(io.StringIO(process.stdout.read())))
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        assert [each["verdict"] for each in found] == ["slower"] * 1000
        seconds.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss / 1000)

    benchmark.pedantic(compare, rounds=ROUNDS)
    print(
        f"\ncompare of 1,000,000 rows: {statistics.median(seconds):.2f} s of processor time, median of {ROUNDS}; "
        f"peak of memory {max(peaks):.0f} MB"
    )
    assert statistics.median(seconds) < LIMIT_SECONDS
    assert max(peaks) < LIMIT_MB


def test_the_pages_of_a_run_take_time_in_proportion_to_its_rows(benchmark: Any, tmp_path: Path) -> None:
    from synthetic_run import synthetic_run

    seconds: dict[int, list[float]] = {10: [], 20: []}
    runs = {
        count: synthetic_run(
            tmp_path / str(count),
            {"torch": 10.0, **{f"b{number}": 10.0 + number for number in range(20)}},
            architectures=[f"n{number}" for number in range(count)],
        )
        for count in seconds
    }
    rows = {count: (path / "results.csv").read_text().count("\n") - 1 for count, path in runs.items()}

    def both() -> None:
        for count, path in runs.items():
            before = os.times()
            write_all(path)
            after = os.times()
            seconds[count].append(after.user - before.user + after.system - before.system)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    medians = {rows[count]: statistics.median(each[1:]) for count, each in seconds.items()}
    print("\npages: " + ", ".join(f"{count:,} rows {each:.2f} s" for count, each in medians.items()))
    (few, short), (many, long) = medians.items()
    assert long < 1.3 * short * many / few
    assert long < LIMIT_PAGE_SECONDS * many / 2000
