"""What the page of a comparison says in words."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from convbench.results import Comparison, Row, compare
from convbench.results.report.findings import comparison_findings
from result_rows import timed, write

BASE = [10.0, 10.1, 9.9]
MINE = {"backend": "mine"}


def compared(tmp_path: Path, *sides: Iterable[Row]) -> Comparison:
    return compare(
        *(write(tmp_path / f"run{index}" / "results.csv", side) for index, side in enumerate(sides))
    )


def history(levels: Iterable[float], **values: str) -> list[list[Row]]:
    return [timed([time * level for time in BASE], **values) for level in levels]


def test_the_largest_change_of_a_history_is_told(tmp_path: Path) -> None:
    steady = history((1, 1.01, 0.99, 1, 1.01, 1))
    up = history((1, 1.01, 0.99, 1.2, 1.21, 1.19), **MINE)
    down = history((1, 1.01, 0.99, 0.5, 0.51, 0.5), backend="other")
    words = comparison_findings(compared(tmp_path, *map(chain, steady, up)))
    (told,) = [each for each in words if "level" in each]
    assert told.startswith("The level of the step time changed in 1 of 2 histories, most in lenet/mine/")
    assert "from run3 on, 20.0% slower (ratio 1.200)." in told
    both = compared(tmp_path, *map(chain, up, down))
    (told,) = [each for each in comparison_findings(both) if "level" in each]
    assert "changed in 2 of 2 histories, most in lenet/other/" in told
    assert "from run3 on, 49.7% less time" in told
    calm = compared(tmp_path, *steady)
    assert calm.trends
    assert "level" not in " ".join(comparison_findings(calm))


def test_a_backend_that_left_more_to_torch_is_named(tmp_path: Path) -> None:
    def side(share: float) -> list[Row]:
        return [
            row
            for backend in ("mine", "other")
            for row in timed(BASE, backend=backend, served_flops_fraction=share)
        ]

    less = " ".join(comparison_findings(compared(tmp_path, side(1), side(0.5))))
    assert "The backend left to torch what it computed in the base: lenet/mine/" in less
    assert ", and likewise in 1 other pair. That time is not its own." in less
    assert "torch" not in " ".join(comparison_findings(compared(tmp_path, side(0.5), side(1))))
