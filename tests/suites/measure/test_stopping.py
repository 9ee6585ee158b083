"""When enough was measured: the intervals, and that the rule sees their width alone."""

from __future__ import annotations

import random

import pytest

from convbench.results.analysis.statistics import mean_interval
from convbench.suites.measure.stopping import (
    half_width,
    median_bounds,
    rounds_suffice,
    steps_suffice,
)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (12, 3, 10), (20, 6, 15), (30, 10, 21), (100, 40, 61)],
)
def test_ranks_are_those_of_the_tables(count: int, low: int, high: int) -> None:
    """Conover, Practical Nonparametric Statistics: order statistics that hold the median with 95%."""
    values = [float(number) for number in range(1, count + 1)]
    random.Random(0).shuffle(values)
    bounds = median_bounds(values)
    assert bounds is not None
    assert (bounds.low, bounds.high) == (low, high)
    assert bounds.value == (count + 1) / 2


def test_thousands_of_values_have_an_interval_too() -> None:
    """Of n values the ranks are n / 2 to within 0.98 of the square root of n, as a normal distribution has it."""
    bounds = median_bounds([float(number) for number in range(1, 10_001)])
    assert bounds is not None
    assert bounds.low == pytest.approx(5000 - 98, abs=1.5)
    assert bounds.high == pytest.approx(5001 + 98, abs=1.5)


def test_too_few_values_have_no_interval_and_never_suffice() -> None:
    for count in range(6):
        assert median_bounds([1.0] * count) is None
        assert not steps_suffice([1.0] * count, precision=1e9)
    assert mean_interval([1.0]) is None
    assert not rounds_suffice([], 1e9)
    assert not rounds_suffice([1.0], 1e9)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    source, held = random.Random(1), 0
    for _ in range(1000):
        bounds = median_bounds([source.lognormvariate(0.0, 0.5) for _ in range(25)])
        assert bounds is not None
        held += bounds.low <= 1.0 <= bounds.high
    assert 0.94 < held / 1000 < 0.985


def test_the_interval_of_processes_is_students() -> None:
    """Of the logarithms 0, 0.1 and 0.2: 0.1 and 4.303 * 0.1 / sqrt(3) to either side."""
    bounds = mean_interval([1.0, 1.10517092, 1.22140276])
    assert bounds is not None
    assert bounds.value == pytest.approx(1.10517092)
    assert bounds.high == pytest.approx(1.10517092 * 1.28201, rel=1e-4)
    assert bounds.low == pytest.approx(1.10517092 / 1.28201, rel=1e-4)
    assert half_width(bounds) == pytest.approx(0.28201, rel=1e-4)


def test_a_width_suffices_at_its_precision_and_not_below() -> None:
    times = [1.0, 1.0, 1.02, 1.02, 1.04, 1.04]
    assert steps_suffice(times, 0.02)
    assert not steps_suffice(times, 0.0195)
    medians = [1.0, 1.10517092, 1.22140276]
    assert rounds_suffice(medians, 0.2821)
    assert not rounds_suffice(medians, 0.2819)


def test_the_rule_does_not_see_how_fast_anything_is() -> None:
    source = random.Random(2)
    for _ in range(200):
        medians = [source.lognormvariate(0.0, 0.03) for _ in range(source.randint(2, 8))]
        for factor in (0.25, 1024.0):
            assert rounds_suffice([factor * each for each in medians], 0.05) == rounds_suffice(medians, 0.05)


def adaptive(source: random.Random, spread: float, least: int, most: int) -> list[float]:
    medians = [source.lognormvariate(0.0, spread) for _ in range(least)]
    while len(medians) < most and not rounds_suffice(medians, 0.05):
        medians.append(source.lognormvariate(0.0, spread))
    return medians


@pytest.mark.parametrize("spread", [0.01, 0.03, 0.05, 0.1])
def test_stopping_early_costs_little_of_what_an_interval_promises(spread: float) -> None:
    """Stopping where the scatter looks small is a choice too; docs/measuring.md has the long version of this."""
    source, held, biased = random.Random(3), 0, 0.0
    for _ in range(500):
        bounds = mean_interval(adaptive(source, spread, least=3, most=10))
        assert bounds is not None
        held += bounds.low <= 1.0 <= bounds.high
        biased += bounds.value - 1.0
    assert held / 500 > 0.88
    assert abs(biased / 500) < 0.3 * spread  # and it has no favourite
