"""Change points: planted steps are found where they are, and in scatter alone hardly ever."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from convbench.results.analysis.significance import ALPHA, FLOOR_SPREAD, MIN_EFFECT
from convbench.results.comparison.history import change_points

MATTERS = math.log1p(MIN_EFFECT)
HISTORIES = 150


def found(values: NDArray[np.float64]) -> list[int]:
    return change_points(values.tolist(), ALPHA, MATTERS, FLOOR_SPREAD)


@pytest.mark.parametrize("runs", [4, 8, 20])
@pytest.mark.parametrize(
    ("scatter", "rate"),
    [
        (lambda random, runs: random.normal(0, 0.05, runs), ALPHA),
        (lambda random, runs: 0.05 * random.standard_t(3, runs), 0.02),
        (lambda random, runs: random.exponential(0.05, runs), 0.05),
    ],
    ids=["normal", "heavy", "skewed"],
)
def test_scatter_is_hardly_ever_a_change(
    scatter: Callable[[np.random.Generator, int], NDArray[np.float64]], rate: float, runs: int
) -> None:
    random = np.random.default_rng(runs)
    alarms = sum(bool(found(scatter(random, runs))) for _ in range(HISTORIES))
    assert alarms <= HISTORIES * rate + 3 * math.sqrt(HISTORIES * rate * (1 - rate))


@pytest.mark.parametrize(
    ("runs", "edges"),
    [(8, [4]), (8, [2]), (8, [6]), (20, [10]), (20, [18]), (12, [4, 8]), (20, [5, 12]), (20, [5, 13])],
)
def test_planted_steps_are_found_where_they_are(runs: int, edges: list[int]) -> None:
    random = np.random.default_rng(1)
    levels = np.zeros(runs)
    for number, edge in enumerate(edges):
        levels[edge:] += 0.1 * (-1) ** number
    right = sum(found(levels + random.normal(0, 0.01, runs)) == edges for _ in range(50))
    assert right >= 48


def test_what_is_too_small_to_matter_is_no_change() -> None:
    levels = np.where(np.arange(20) < 10, 0.0, 0.02)
    assert found(levels + np.random.default_rng(2).normal(0, 0.001, 20)) == []


@pytest.mark.parametrize("at", [0, 6, 11])
def test_one_run_apart_from_all_others_is_no_level(at: int) -> None:
    values = np.random.default_rng(3).normal(0, 0.01, 12)
    values[at] += 0.5
    assert found(values) == []


@pytest.mark.parametrize("runs", [0, 1, 2, 3])
def test_few_runs_show_no_change(runs: int) -> None:
    assert found(np.linspace(0, 1, runs)) == []


def test_equal_runs_are_no_change() -> None:
    assert found(np.zeros(30)) == []
