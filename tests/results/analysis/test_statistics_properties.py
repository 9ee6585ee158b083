"""Intervals and change points on any data: what no change of units, sides or order may alter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from convbench.results.analysis.significance import (
    ALPHA,
    FLOOR_SPREAD,
    MIN_EFFECT,
    judge,
    log_difference,
    paired_log_difference,
)
from convbench.results.analysis.statistics import holm, mean_interval
from convbench.results.comparison.history import change_points
from fuzzing import fuzzed

time = st.floats(1e-3, 1e5)
times = st.lists(time, min_size=2, max_size=12)
near = st.floats(0.8, 1.25)
close = pytest.approx


@fuzzed(60, 1000, values=times, scale=st.floats(1e-6, 1e6))
def test_an_interval_of_other_units_is_the_same_interval(values: list[float], scale: float) -> None:
    interval, scaled = mean_interval(values), mean_interval([each * scale for each in values])
    assert interval is not None
    assert scaled is not None
    assert interval.low <= interval.value <= interval.high
    assert min(values) * (1 - 1e-9) <= interval.value <= max(values) * (1 + 1e-9)
    if math.exp(-600) < interval.low and interval.high < math.exp(600):
        assert [each / scale for each in scaled] == close(list(interval), rel=1e-6)


@fuzzed(40, 1000, values=st.lists(near, min_size=2, max_size=6), copies=st.integers(2, 5))
def test_more_data_narrow_an_interval(values: list[float], copies: int) -> None:
    few, many = mean_interval(values), mean_interval(values * copies)
    assert few is not None
    assert many is not None
    assert math.log(many.high / many.low) <= math.log(few.high / few.low) * (1 + 1e-9) + 1e-12


@fuzzed(40, 1000, values=times, less=st.floats(0.5, 0.9), more=st.floats(0.91, 0.999))
def test_a_surer_interval_is_wider(values: list[float], less: float, more: float) -> None:
    inner, outer = mean_interval(values, less), mean_interval(values, more)
    assert inner is not None
    assert outer is not None
    assert outer.low <= inner.low <= inner.high <= outer.high


@fuzzed(60, 1000, base=times, new=times, scale=st.floats(1e-3, 1e3))
def test_exchanged_sides_have_the_opposite_difference(
    base: list[float], new: list[float], scale: float
) -> None:
    there, back = log_difference(base, new), log_difference(new, base)
    scaled = log_difference([each * scale for each in base], [each * scale for each in new])
    assert back.estimate == close(-there.estimate, rel=1e-9, abs=1e-9)
    assert scaled.estimate == close(there.estimate, rel=1e-6, abs=1e-9)
    assert back.p_value == close(there.p_value, rel=1e-6, abs=1e-12)
    assert scaled.p_value == close(there.p_value, rel=1e-4, abs=1e-9)
    (one,), (other,) = judge([there], MIN_EFFECT), judge([back], MIN_EFFECT)
    opposite = {"more": "less", "less": "more"}
    assert other.verdict == opposite.get(one.verdict, one.verdict)


@fuzzed(40, 1000, pairs=st.lists(st.tuples(time, near), min_size=2, max_size=10))
def test_exchanged_sides_of_pairs_have_the_opposite_difference(pairs: list[tuple[float, float]]) -> None:
    base, new = [each for each, _ in pairs], [each * ratio for each, ratio in pairs]
    there, back = paired_log_difference(base, new), paired_log_difference(new, base)
    assert back.estimate == close(-there.estimate, rel=1e-9, abs=1e-9)
    assert back.p_value == close(there.p_value, rel=1e-6, abs=1e-12)


@fuzzed(60, 1000, p_values=st.lists(st.floats(0, 1), min_size=1, max_size=20), data=st.data())
def test_holm_keeps_the_order_and_never_lowers(p_values: list[float], data: st.DataObject) -> None:
    corrected = holm(p_values)
    assert all(p <= found <= 1 for p, found in zip(p_values, corrected, strict=True))
    ranked = sorted(zip(p_values, corrected, strict=True))
    assert [found for _, found in ranked] == sorted(corrected)
    order = data.draw(st.permutations(range(len(p_values))))
    assert [corrected[at] for at in order] == close(holm([p_values[at] for at in order]))


def points(values: Sequence[float]) -> list[int]:
    return change_points(list(values), ALPHA, math.log1p(MIN_EFFECT), FLOOR_SPREAD)


@fuzzed(
    30,
    400,
    noise=st.lists(st.floats(-0.02, 0.02), min_size=4, max_size=30),
    shift=st.floats(-5, 5),
    data=st.data(),
)
def test_change_points_do_not_depend_on_units_or_direction(
    noise: list[float], shift: float, data: st.DataObject
) -> None:
    """Logarithms: other units are a shift, and exchanged sides a sign."""
    at, step = data.draw(st.integers(0, len(noise))), data.draw(st.floats(-0.5, 0.5))
    values = [each + step * (place >= at) for place, each in enumerate(noise)]
    found = points(values)
    assert found == sorted(set(found))
    assert all(0 < each < len(values) for each in found)
    assume(found == points([each + 1e-9 for each in values]))  # not at the very edge of a decision
    assert points([each + shift for each in values]) == found
    assert points([-each for each in values]) == found
