"""Verdicts: equals are seldom called different, different ones are, and what cannot be told is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from convbench.results.analysis.significance import (
    ALPHA,
    MIN_EFFECT,
    PAIRED_FROM,
    Judged,
    effect,
    judge,
    log_difference,
    paired_log_difference,
    processes_to_decide,
    processes_to_pass,
    scatter,
    time_difference,
    time_interval,
    time_ratio,
    would_decide,
)

MATTERS = math.log1p(MIN_EFFECT)
Draw = Callable[[np.random.Generator, int, float], NDArray[np.float64]]


def verdict(base: list[float], new: list[float]) -> Judged:
    return judge([log_difference(base, new)], MATTERS)[0]


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [
        ([10.0, 10.1, 9.9], [12.0, 12.1, 11.9], "more"),
        ([12.0, 12.1, 11.9], [10.0, 10.1, 9.9], "less"),
        ([10.0, 10.01, 9.99], [10.02, 10.0, 9.99], "same"),
        ([10.0, 10.01, 9.99], [10.15, 10.16, 10.14], "same"),  # sure, and too small to matter
        ([10.0, 14.0, 8.0], [12.0, 15.0, 9.0], "unclear"),
        ([10.0, 10.0, 10.0], [10.0, 10.0, 10.0], "same"),
        ([10.0, 10.0, 10.0], [20.0, 20.0, 20.0], "more"),
    ],
)
def test_three_processes_a_side(base: list[float], new: list[float], expected: str) -> None:
    assert verdict(base, new).verdict == expected


def test_one_process_a_side_shows_gross_differences_and_never_sameness() -> None:
    assert verdict([10.0], [10.0]).verdict == "unclear"
    assert verdict([10.0], [12.0]).verdict == "unclear"
    assert verdict([10.0], [20.0]).verdict == "more"
    assert log_difference([10.0], [10.0, 10.1, 9.9]).assumed
    assert 1.3 < math.exp(verdict([10.0], [12.0]).detectable) < 1.6


def test_what_is_called_lies_beyond_what_is_detectable() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        base, new = 10 * np.exp(random.normal(0, 0.02, 3)), 11 * np.exp(random.normal(0, 0.02, 3))
        gap = log_difference(base.tolist(), new.tolist())
        judged = judge([gap], MATTERS)[0]
        assert (judged.verdict == "more") == (gap.estimate > judged.detectable)


def test_judging_many_together_asks_for_more() -> None:
    gap = log_difference([10.0, 10.1, 9.9], [10.6, 10.75, 10.5])
    alone = judge([gap], MATTERS)[0]
    together = judge([gap] * 30, MATTERS)[0]
    assert alone.verdict == "more"
    assert together.verdict == "unclear"
    assert together.p_value > alone.p_value
    assert together.detectable > alone.detectable


@pytest.mark.parametrize(("ratio", "words"), [(1.125, "12.5%"), (3.14, "3.1×"), (1e9, "more than 100×")])
def test_the_size_of_an_effect_is_readable(ratio: float, words: str) -> None:
    assert effect(ratio) == words


def normal(random: np.random.Generator, count: int, spread: float) -> NDArray[np.float64]:
    return np.exp(random.normal(0, spread, count))


def skewed(random: np.random.Generator, count: int, spread: float) -> NDArray[np.float64]:
    return 1 + random.exponential(spread, count)


def heavy(random: np.random.Generator, count: int, spread: float) -> NDArray[np.float64]:
    return np.exp(random.standard_t(2, count) * spread)


@pytest.mark.parametrize("pairs", [1, 10])
@pytest.mark.parametrize("processes", [3, 5])
@pytest.mark.parametrize("spread", [0.02, 0.1])
@pytest.mark.parametrize("draw", [normal, skewed, heavy])
def test_equals_are_called_different_in_at_most_one_of_a_hundred_comparisons(
    draw: Draw, spread: float, processes: int, pairs: int
) -> None:
    random = np.random.default_rng(4)
    comparisons = 400
    alarms = 0
    for _ in range(comparisons):
        sides = draw(random, 2 * pairs * processes, spread).reshape(pairs, 2, processes).tolist()
        judged = judge([log_difference(base, new) for base, new in sides], MATTERS)
        alarms += any(each.verdict in ("more", "less") for each in judged)
    # Three standard deviations of the count above a true rate of ALPHA.
    assert alarms <= comparisons * ALPHA + 3 * math.sqrt(comparisons * ALPHA * (1 - ALPHA))


@pytest.mark.parametrize("processes", [PAIRED_FROM, 12])
@pytest.mark.parametrize("draw", [normal, skewed, heavy])
def test_equals_in_pairs_are_called_different_as_seldom(draw: Draw, processes: int) -> None:
    random = np.random.default_rng(6)
    alarms = 0
    for _ in range(600):
        drift = np.exp(random.normal(0, 0.5, processes))
        base, new = drift * draw(random, processes, 0.1), drift * draw(random, processes, 0.1)
        (judged,) = judge([paired_log_difference(base.tolist(), new.tolist())], MATTERS)
        alarms += judged.verdict in ("more", "less")
    assert alarms <= 600 * ALPHA + 3 * math.sqrt(600 * ALPHA * (1 - ALPHA))


@pytest.mark.parametrize("apart", [1.2, 2.0])
@pytest.mark.parametrize(
    ("processes", "rare", "pairs", "rate"),
    [
        (3, 0.5, 1, 0.03),
        (3, 0.5, 10, 0.3),
        (3, 0.2, 1, 0.01),
        (3, 0.2, 10, 0.09),
        (5, 0.5, 1, 0.01),
        (5, 0.5, 10, 0.03),
    ],
)
def test_two_modes_defeat_three_processes_as_often_as_is_said(
    processes: int, rare: float, pairs: int, rate: float, apart: float
) -> None:
    random = np.random.default_rng(7)
    comparisons = 300
    alarms = 0
    for _ in range(comparisons):
        shape = (pairs, 2, processes)
        modes = np.where(random.random(shape) < rare, apart, 1.0)
        sides = (modes * np.exp(random.normal(0, 0.005, shape))).tolist()
        judged = judge([log_difference(base, new) for base, new in sides], MATTERS)
        alarms += any(each.verdict in ("more", "less") for each in judged)
    assert alarms <= comparisons * rate + 3 * math.sqrt(comparisons * rate * (1 - rate))


@pytest.mark.parametrize(
    ("spread", "slowdown", "power"), [(0.005, 1.1, 0.9), (0.02, 1.5, 0.9), (0.05, 2.0, 0.7)]
)
def test_real_differences_are_found(spread: float, slowdown: float, power: float) -> None:
    random = np.random.default_rng(5)
    found = 0
    for _ in range(300):
        base, new = normal(random, 3, spread), slowdown * normal(random, 3, spread)
        found += verdict(base.tolist(), new.tolist()).verdict == "more"
    assert found >= 300 * power


@pytest.mark.parametrize("processes", [3, 8])
@pytest.mark.parametrize("spread", [0.02, 0.1])
@pytest.mark.parametrize("draw", [normal, heavy])
def test_intervals_hold_the_true_ratio_as_often_as_they_say(
    draw: Draw, spread: float, processes: int
) -> None:
    random = np.random.default_rng(8)
    held = 0
    for _ in range(600):
        base, new = 10 * draw(random, processes, spread), 20 * draw(random, processes, spread)
        ratio = time_ratio(
            dict(enumerate(base.tolist())), {-1 - at: ms for at, ms in enumerate(new.tolist())}
        )
        assert ratio is not None
        assert ratio.value == pytest.approx(math.exp(np.log(new).mean() - np.log(base).mean()))
        held += ratio.low <= 2 <= ratio.high
    assert held >= 600 * 0.95 - 3 * math.sqrt(600 * 0.95 * 0.05)


def test_the_method_is_that_of_scipy() -> None:
    random = np.random.default_rng(9)
    for count in (3, 5, 8):
        base, new = normal(random, count, 0.05), 1.1 * normal(random, count, 0.05)
        welch = stats.ttest_ind(np.log(new), np.log(base), equal_var=False)
        gap = log_difference(base.tolist(), new.tolist())
        interval = welch.confidence_interval(0.95)
        assert (gap.p_value, gap.freedom) == pytest.approx((welch.pvalue, welch.df))
        assert gap.estimate + gap.margin(0.05) == pytest.approx(interval.high)
        paired = stats.ttest_rel(np.log(new), np.log(base))
        assert paired_log_difference(base.tolist(), new.tolist()).p_value == pytest.approx(paired.pvalue)


def test_processes_of_one_run_are_paired_from_six_on() -> None:
    drift = [1.0, 1.5, 0.7, 2.0, 1.1, 0.9]
    base = {("run", at): 10 * each for at, each in enumerate(drift)}
    new = {("run", at): 11 * each for at, each in reversed(list(enumerate(drift)))}
    assert time_difference(base, new).paired
    assert not time_difference(base, {("another", at): ms for (_, at), ms in new.items()}).paired
    few = [{process: ms for process, ms in side.items() if process[1] < 5} for side in (base, new)]
    assert not time_difference(*few).paired
    ratio = time_ratio(base, new)
    assert ratio is not None
    assert ratio.high - ratio.low < 0.01  # what the machine did to both alike cancels


# Two processes


def test_two_processes_take_a_part_of_their_variance_from_the_other_lines() -> None:
    pair = [[10.0, 10.1], [14.0, 14.3]]
    quiet = scatter([*pair, *([10.0, 10.2] for _ in range(6))])
    loud = scatter([*pair, *([10.0, 13.0] for _ in range(6))])
    alone, among_quiet, among_loud = (log_difference(*pair, group) for group in (None, quiet, loud))
    assert among_quiet.margin(0.05) < 0.1 < alone.margin(0.05) < among_loud.margin(0.05)
    own = stats.ttest_ind(np.log(pair[1]), np.log(pair[0]), equal_var=False).confidence_interval(0.95)
    assert among_quiet.margin(0.05) < (own.high - own.low) / 4
    three = [[10.0, 10.1, 10.2], [14.0, 14.3, 14.1]]
    assert log_difference(*three, loud) == log_difference(*three)  # they stand for themselves


def test_two_processes_that_lie_apart_stand_for_themselves() -> None:
    pair = [[10.0, 20.0], [14.0, 14.1]]
    quiet = scatter([*pair, *([10.0, 10.1] for _ in range(6))])
    assert log_difference(*pair, quiet).margin(0.05) > 1.5


def test_gross_differences_show_with_two_processes_as_they_do_with_one() -> None:
    base, new = [2300.0, 2340.0], [8000.0, 8500.0]  # Welch's p-value is 0.01, of two alone
    assert verdict(base[:1], new[:1]).verdict == "more"
    assert verdict(base, new).verdict == "more"
    assert judge([log_difference(base, new)] * 8, MATTERS)[0].verdict == "more"


def test_the_interval_of_one_line_is_of_the_same_kind() -> None:
    lines = [[10.0, 10.2], [14.0, 14.4], [20.0, 20.1], [8.0, 8.1]]
    for line in lines:
        found = time_interval(line, scatter(lines))
        assert found is not None
        assert found.low < math.sqrt(line[0] * line[1]) < found.high < 1.2 * found.low
    assert time_interval([10.0], scatter(lines)) is None


NOISE: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "alike": lambda random, lines: np.full(lines, 0.02),
    "unlike": lambda random, lines: 0.01 * np.exp(random.uniform(0, math.log(10), lines)),
    "one loud": lambda random, lines: np.where(np.arange(lines) == lines - 1, 0.1, 0.02),
}


@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("backends", [1, 4, 8])
@pytest.mark.parametrize("noise", NOISE)
def test_intervals_of_two_processes_hold_and_raise_no_more_alarms(
    noise: str, backends: int, outliers: float
) -> None:
    random = np.random.default_rng(10)
    held = alarms = 0
    comparisons = 300
    for _ in range(comparisons):
        shape = (2, backends, 2)
        logs = random.normal(0, 1, shape) * NOISE[noise](random, backends)[:, None]
        logs += np.where(random.random(shape) < outliers, random.uniform(0.1, 0.5, shape), 0)
        base, new = np.exp(logs).tolist()
        group = scatter([*base, *new])
        gaps = [log_difference(*sides, group) for sides in zip(base, new, strict=True)]
        held += sum(abs(gap.estimate) <= gap.margin(0.05) for gap in gaps)
        alarms += any(each.verdict in ("more", "less") for each in judge(gaps, MATTERS))
    trials = comparisons * backends
    assert held >= 0.95 * trials - 3 * math.sqrt(trials * 0.95 * 0.05)
    assert alarms <= comparisons * ALPHA + 3 * math.sqrt(comparisons * ALPHA * (1 - ALPHA))


# How many processes would decide


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.05, 0.15])
@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_so_many_processes_do_decide(truth: float, spread: float) -> None:
    random = np.random.default_rng(11)
    base, new = ((spread * np.array([-1, 0, 1, 0.0]) + at).tolist() for at in (0, truth))
    gap = log_difference(*np.exp([base, new]).tolist())
    needed = processes_to_decide(gap, MATTERS, 1)
    assert needed is not None
    found = [0, 0]
    for _ in range(200):
        for at, processes in enumerate((needed, max(needed // 3, 2))):
            sides = np.exp(random.normal(0, math.sqrt(2 / 3) * spread, (2, processes)))
            sides[1] *= math.exp(truth)
            found[at] += verdict(*sides.tolist()).verdict != "unclear"
    assert found[0] >= 140
    assert found[1] < 140


def test_a_difference_at_the_edge_takes_more_than_anybody_has() -> None:
    gap = log_difference([10.0, 10.1, 9.9], [10.3, 10.4, 10.2])
    assert processes_to_decide(gap, gap.estimate + 1e-9, 1) is None
    assert processes_to_pass(gap, gap.estimate + 1e-9, 1) is None


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        ([], ""),
        ([8], "about 8 processes a side would decide this"),
        ([None], "to decide the unclear pair, more than 1,000 processes a side are needed"),
        ([8, 8], "of 2 unclear pairs, about 8 processes a side would decide all"),
        ([20, 8], "of 2 unclear pairs, about 8 processes a side would decide 1, about 20 would decide all"),
        ([8, None], "of 2 unclear pairs, about 8 processes a side would decide 1"),
        ([None, None], "to decide the 2 unclear pairs, more than 1,000 processes a side are needed"),
    ],
)
def test_what_would_decide_is_one_sentence(needed: list[int | None], words: str) -> None:
    assert would_decide(needed) == words
