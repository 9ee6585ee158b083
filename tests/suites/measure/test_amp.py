"""A row says whether its steps were taken under autocast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convbench.suites import run
from convbench.suites.config.suite import Suite

pytestmark = pytest.mark.usefixtures("preloaded_servers")


@pytest.mark.exhaustive
def test_half_precision_is_trained_by_autocast_and_its_row_says_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "architectures": ("mlp",),
        "backends": ("torch",),
        "dtypes": ("float32", "bfloat16", "tf32"),
    }
    options |= {"dataset": "fashion-mnist-sample", "timing.rounds": 1, "timing.steps": 3}
    suite = Suite(name="halves").override(options)
    rows = [row for row in run(suite, out=tmp_path / "run", train=False).rows if row.kind == "time"]
    found = {row.dtype: (row.status, row.autocast) for row in rows}
    assert (found["float32"], found["bfloat16"]) == (("ok", 0), ("ok", 1))
    assert found["tf32"][0] == "unsupported"
