"""The statistics behind every interval, against published values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convbench.results.analysis.significance import welch_freedom
from convbench.results.analysis.statistics import holm, mean_interval, median, t_quantile, t_tail


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1000])
def test_a_median_is_numpys_however_many_values_there_are(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    assert median(values.tolist()) == np.median(values)
    assert math.isnan(median([*values.tolist(), math.nan]))


# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 1, 12.706), (0.975, 4, 2.776), (0.995, 2, 9.925), (0.95, 30, 1.697), (0.999, 100, 3.174)],
)
def test_quantiles_of_students_t_agree_with_the_tables(
    probability: float, freedom: int, expected: float
) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("freedom", [1.0, 2.5, 4.0, 250.0])
def test_tail_and_quantile_are_inverse(freedom: float) -> None:
    assert t_tail(t_quantile(0.995, freedom), freedom) == pytest.approx(0.01)
    assert t_tail(0, freedom) == pytest.approx(1)


def test_freedom_of_equal_sides_is_that_of_both_and_of_unequal_ones_of_the_noisy() -> None:
    assert welch_freedom([(3, 1.0), (3, 1.0)]) == pytest.approx(4)
    assert welch_freedom([(3, 1e-9), (3, 1.0)]) == pytest.approx(2, abs=1e-6)
    assert welch_freedom([(3, 0.0), (3, 0.0)]) == 4


def test_holm_corrects_as_in_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_needs_two_processes() -> None:
    assert mean_interval([10.0]) is None
    assert mean_interval([10.0, 10.1]) is not None


@pytest.mark.parametrize("count", [3, 8])
def test_intervals_of_a_mean_hold_it_as_often_as_they_say(count: int) -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        found = mean_interval((20 * np.exp(random.normal(0, 0.05, count))).tolist())
        assert found is not None
        held += found.low <= 20 <= found.high
    assert held >= 600 * 0.95 - 3 * math.sqrt(600 * 0.95 * 0.05)


def test_an_interval_of_wild_times_is_a_number() -> None:
    found = mean_interval([1e-300, 1e300])
    assert found is not None
    assert math.isfinite(found.high)
