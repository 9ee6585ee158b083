"""What the page of a comparison says in words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convbench.results import Comparison, Row, compare
from convbench.results.comparison_narrative import verdicts_in_words
from result_rows import timed, write

BASE = [10.0, 10.1, 9.9]


def compared(tmp_path: Path, *sides: Iterable[Row]) -> Comparison:
    return compare(
        *(write(tmp_path / f"run{index}" / "results.csv", side) for index, side in enumerate(sides))
    )


def test_a_backend_that_left_more_to_torch_is_named(tmp_path: Path) -> None:
    def side(share: float) -> list[Row]:
        return [
            row
            for backend in ("mine", "other")
            for row in timed(BASE, backend=backend, served_flops_fraction=share)
        ]

    less = " ".join(verdicts_in_words(compared(tmp_path, side(1), side(0.5))))
    assert "The backend left to torch what it computed in the base: lenet/mine/" in less
    assert ", and likewise in 1 other pair. That time is not its own." in less
    assert "torch" not in " ".join(verdicts_in_words(compared(tmp_path, side(0.5), side(1))))
