"""The gate on simulated runs: equals pass, and real slow-downs do not, as often as its docstring says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convbench.registry import ConvbenchError
from convbench.results.comparison.compare import Comparison, compare_times
from convbench.results.comparison.pairing import Match
from convbench.results.comparison.sides import Measured
from convbench.results.schema import Combination

LIMIT, NOISE = 0.05, 0.02
TRIALS = 400


def passes(random: np.random.Generator, pairs: int, processes: int, slower: float) -> bool:
    """Whether the gate lets a comparison of two runs pass, the first pair of which became slower."""
    matches = []
    for number in range(pairs):
        base, new = (10 * np.exp(random.normal(0, NOISE, processes)) for _ in range(2))
        new *= 1 + slower * (number == 0)
        base_rounds, new_rounds = (
            tuple(float(100 * side + at) for at in range(processes)) for side in range(2)
        )
        combination = Combination(f"net{number}", "im2col", "cpu", "float32", 128, "contiguous", "eager", 0)
        old, fresh = Measured(tuple(base), base_rounds), Measured(tuple(new), new_rounds)
        matches.append(Match("new", combination, old, fresh, ""))
    found = Comparison(("base", "new"), compare_times(matches, 0.03), (), (), (), 0.03)
    try:
        found.gate(LIMIT)
    except ConvbenchError:
        return False
    return True


def passed(pairs: int, processes: int, slower: float, trials: int = TRIALS) -> int:
    random = np.random.default_rng(pairs + processes)
    return sum(passes(random, pairs, processes, slower) for _ in range(trials))


def wrong(rate: float, trials: int = TRIALS) -> float:
    """Three standard deviations above a rate."""
    return trials * rate + 3 * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize(
    ("pairs", "processes", "rate"), [(1, 8, 0.98), (5, 8, 0.98), (40, 8, 0.93), (40, 10, 0.98)]
)
def test_equals_pass(pairs: int, processes: int, rate: float) -> None:
    trials = TRIALS if pairs < 40 else 100
    assert trials - passed(pairs, processes, 0.0, trials) <= wrong(1 - rate, trials)


@pytest.mark.parametrize(("slower", "rate"), [(0.05, 0.05), (0.06, 0.01), (0.08, 0.001)])
@pytest.mark.parametrize("processes", [3, 8])
def test_a_real_slow_down_is_stopped(slower: float, rate: float, processes: int) -> None:
    assert passed(2, processes, slower) <= wrong(rate)


def test_a_slow_down_is_stopped_among_many_pairs() -> None:
    assert passed(40, 8, 0.08, trials=100) == 0
