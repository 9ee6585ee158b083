"""Equals and a planted slow-down, timed here and now, and judged: false alarms and what was found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import calibrate_compare as calibration  # noqa: E402

ROUNDS, PROCESSES, COMPARISONS = 24, 8, 200


def test_equals_are_equal_and_slow_downs_found_or_unclear(tmp_path: Path, benchmark: Any) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "calibrate_compare.py")]
    command = [*script, "measure", str(tmp_path / "run"), "--rounds", str(ROUNDS)]
    benchmark.pedantic(subprocess.run, (command,), {"check": True, "capture_output": True}, rounds=1)
    layers = [list(rounds.values()) for rounds in calibration.measured(tmp_path / "run").values()]
    rates = calibration.rates(layers, PROCESSES, COMPARISONS)
    print(f"\n{rates.comparisons} comparisons of each kind, {PROCESSES} processes a side: {rates}")
    benchmark.extra_info.update(comparisons=rates.comparisons, false_alarms=rates.false_alarms)
    assert rates.comparisons >= COMPARISONS
    assert rates.false_alarms <= 0.01
    assert rates.slower_10["less"] + rates.slower_10["same"] == 0
