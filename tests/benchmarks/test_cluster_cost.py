"""What the driver of a run on a cluster costs: processor time for a row, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMIT_MS, LIMIT_MB = 5.0, 500.0
SCRIPT = Path(__file__).with_name("fake_cluster.py")


@pytest.mark.timeout(1200)
def test_ten_thousand_combinations_on_a_hundred_machines(tmp_path: Path, benchmark: Any) -> None:
    """Planning included; the machines that are made up are threads of the driver, and are counted with it."""

    def run() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path / "run")], capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, float] = json.loads(done.stdout)
        return found

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    assert found["combinations"] == 10_000
    assert found["rows"] == found["ok"] == 50_000
    assert found["machines"] == 100
    ms = 1000 * (found["plan_seconds"] + found["run_seconds"]) / found["rows"]
    benchmark.extra_info.update(found, ms_per_row=ms)
    print(
        f"\n{ms:.2f} ms of the driver's processor time for a row, {found['peak_mb']:.0f} MB at most: {found}"
    )
    assert ms < LIMIT_MS
    assert found["peak_mb"] < LIMIT_MB
