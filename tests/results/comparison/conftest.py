"""For the tests of comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from convbench.results import Comparison, Row, compare
from result_rows import write


@pytest.fixture
def against(tmp_path: Path) -> Any:
    """Compare lists of rows as if they were files."""

    def compare_rows(*sides: Iterable[Row], **options: Any) -> Comparison:
        paths = [write(tmp_path / f"run{index}" / "results.csv", side) for index, side in enumerate(sides)]
        return compare(*paths, **options)

    return compare_rows
