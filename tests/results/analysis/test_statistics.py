"""The statistics behind every interval, against published values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convbench.results.analysis.statistics import (
    bootstrap_error,
    holm,
    log_median_moments,
    median,
    median_interval,
    median_weights,
    ratio_interval,
    t_quantile,
    t_tail,
    welch_freedom,
)


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1000])
def test_a_median_is_numpys_however_many_values_there_are(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    assert median(values) == median(values.tolist()) == np.median(values)
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


def processes(
    random: np.random.Generator, count: int, center: float, between: float, within: float = 0.02
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Step times of processes, each with a level of its own."""
    levels = center * np.exp(random.normal(0, between, count))
    return [level * np.exp(random.normal(0, within, 30)) for level in levels]


def test_an_interval_needs_two_processes() -> None:
    random = np.random.default_rng(0)
    one, two = processes(random, 1, 10, 0.01), processes(random, 2, 10, 0.01)
    assert median_interval(one) is None
    assert ratio_interval(one, two) is None
    assert ratio_interval(two, two) is not None


def test_an_interval_is_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    sides = processes(random, 3, 10, 0.02), processes(random, 3, 20, 0.02)
    assert ratio_interval(*sides) == ratio_interval(*sides)


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_three_processes_a_side_give_intervals_that_hold_the_truth(between: float) -> None:
    random = np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(60):
        base, new = processes(random, 3, 10, between), processes(random, 3, 20, between)
        ratio = ratio_interval(base, new)
        middle = median_interval(new)
        assert ratio is not None
        assert middle is not None
        held += (ratio.low <= 2 <= ratio.high) + (middle.low <= 20 <= middle.high)
        widths.append(math.log(ratio.high / ratio.low))
    assert held >= 110  # of 120 at 95 %
    assert max(np.median(widths), 0.01) < 10 * max(between, 0.02)  # and are not wide without reason


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 30, 31, 400])
def test_the_exact_bootstrap_of_a_median_is_that_of_many_resamples(count: int) -> None:
    random = np.random.default_rng(count)
    steps = random.lognormal(0, 0.3, count)
    drawn = steps[random.integers(0, count, (20_000, count))]
    logs = np.log(np.median(drawn, axis=1))
    mean, square = log_median_moments(steps)
    deviation = math.sqrt(max(square - mean**2, 0.0))
    assert deviation == pytest.approx(logs.std(), rel=0.03, abs=1e-9)
    assert mean == pytest.approx(logs.mean(), abs=5 * deviation / math.sqrt(20_000) + 1e-9)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 1000, 1001, 20_000, 20_001])
def test_the_weights_of_a_median_are_probabilities_about_the_middle(count: int) -> None:
    at, weights = median_weights(count)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    assert (at[0] <= at[1]).all()
    assert weights @ at.mean(axis=0) == pytest.approx((count - 1) / 2)
    # Asymptotically normal, with the variance of a sample median of evenly spread values.
    assert math.sqrt(weights @ (at.mean(axis=0) - (count - 1) / 2) ** 2) < 0.55 * math.sqrt(count) + 0.5


def test_the_error_is_that_of_resampled_processes_and_steps() -> None:
    random = np.random.default_rng(3)
    sides = processes(random, 4, 10, 0.03, within=0.1)
    found = []
    for _ in range(4000):
        chosen = [sides[at][random.integers(0, 30, 30)] for at in random.integers(0, 4, 4)]
        found.append(np.mean([math.log(np.median(steps)) for steps in chosen]))
    assert bootstrap_error(sides) == pytest.approx(np.std(found), rel=0.05)


def test_more_processes_narrow_the_interval_and_more_steps_do_not() -> None:
    random = np.random.default_rng(2)

    def width(count: int, repeats: int) -> float:
        found = []
        for _ in range(10):
            sides = [
                [np.tile(each, repeats) for each in processes(random, count, 10, 0.05)] for _ in range(2)
            ]
            interval = ratio_interval(*sides)
            assert interval is not None
            found.append(math.log(interval.high / interval.low))
        return float(np.median(found))

    assert width(12, 1) < width(3, 1) / 2
    assert width(3, 8) > width(3, 1) / 2
