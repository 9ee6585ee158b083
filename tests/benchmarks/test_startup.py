"""`convbench --help` beside a Python that does nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 9
LIMIT_SECONDS = 0.25


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., float]:
    """Seconds that a Python process takes, with compiled modules kept as an installation keeps them."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}

    def seconds(*arguments: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - begin

    return seconds


def test_help_comes_at_once(benchmark: Any, start: Callable[..., float]) -> None:
    bare: list[float] = []
    helped: list[float] = []
    benchmark.pedantic(
        lambda: helped.append(start("-m", "convbench.registry", "--help")),
        setup=lambda: bare.append(start("-c", "pass")),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    median = statistics.median(helped[1:])
    print(
        f"\nconvbench --help: {median:.3f} s, python -c pass: {statistics.median(bare[1:]):.3f} s, "
        f"medians of {ROUNDS} in turn"
    )
    assert median < LIMIT_SECONDS
