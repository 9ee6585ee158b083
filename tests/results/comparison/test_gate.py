"""The gate: what passes and what does not, on simulated runs as often as its docstring says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convbench.registry import ConvbenchError, GateFailed, NothingRan, UsageError
from convbench.results.comparison.compare import Comparison, compare_times
from convbench.results.comparison.pairing import Match
from convbench.results.comparison.sides import Measured
from convbench.results.schema import Combination
from result_rows import BASE, QUIET, SLOWER, comparing, row, timed, trained

LIMIT, NOISE = 0.05, 0.02
TRIALS = 400


@pytest.fixture
def against(tmp_path: Path) -> Any:
    return comparing(tmp_path)


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


def test_the_gate_fails_for_a_slow_down_beyond_it(against: Any) -> None:
    found = against(timed(BASE), timed(SLOWER))
    with pytest.raises(
        GateFailed, match=r"1 of 1 pairs are .* than 5\.0%, the worst by 20\.0%: lenet/im2col"
    ):
        found.gate(0.05)
    found.gate(0.30)


def test_a_slow_down_that_may_lie_within_the_limit_is_undecided(against: Any) -> None:
    base = [10.0, 10.2, 9.8, 10.1, 9.9, 10.0]
    found = against(timed(base), timed([time * 1.06 for time in (*base[3:], *base[:3])]))
    (pair,) = found.times
    assert pair.verdict == "slower"
    assert pair.low < 1.05 < pair.ratio
    with pytest.raises(NothingRan, match=r"About \d+ processes a side would decide this"):
        found.gate(0.05)
    with pytest.raises(GateFailed):
        found.gate(0.03)


def test_the_gate_passes_what_is_faster_or_the_same(against: Any) -> None:
    assert "none of 1 pairs" in against(timed(SLOWER), timed(BASE)).gate(0.05)
    assert "noise" not in against(timed([10.0, 10.01, 9.99]), timed([10.0, 10.01, 9.99])).gate(0.05)


def test_the_gate_does_not_pass_where_noise_hides_as_much(against: Any) -> None:
    blind = against(timed(BASE), timed([9.0, 13.0, 11.0]))
    with pytest.raises(
        NothingRan, match=r"in 1 of 1 pairs a slow-down by 5\.0% is not ruled out; lenet/im2col.* up to "
    ):
        blind.gate(0.05)
    with pytest.raises(NothingRan, match="in 1 of 1 pairs"):
        blind.gate(0.05, allow_unclear=True)
    mine = {"backend": "mine"}
    mixed = against([*timed(QUIET), *timed(BASE, **mine)], [*timed(QUIET), *timed([9.0, 13.0, 11.0], **mine)])
    with pytest.raises(NothingRan, match="in 1 of 2 pairs"):
        mixed.gate(0.05)
    assert "noise hides as much in 1" in mixed.gate(0.05, allow_unclear=True)


def test_the_gate_says_how_many_processes_would_decide(against: Any) -> None:
    blind = against(timed(BASE), timed([9.0, 13.0, 11.0]))
    with pytest.raises(NothingRan, match=r"About \d+ processes a side would decide this \(--rounds\)"):
        blind.gate(0.05)
    (pair,) = blind.times
    assert blind.advice == f"about {pair.processes_needed} processes a side would decide this"
    clear = against(timed(BASE), timed(SLOWER))
    assert (clear.advice, clear.times[0].processes_needed) == ("", None)


def test_two_processes_of_a_backend_learn_from_the_others(against: Any) -> None:
    names = ("im2col", "fft", "native", "shift", "mine")
    base, new = (
        [each for name in names for each in timed([ms, ms * 1.01], backend=name)] for ms in (10.0, 12.0)
    )
    alone = against(timed([10.0, 10.1]), timed([12.0, 12.12])).times[0]
    among = against(base, new).times[0]
    assert (alone.verdict, among.verdict) == ("unclear", "slower")
    assert among.ratio == pytest.approx(alone.ratio)
    assert among.high - among.low < (alone.high - alone.low) / 4


def test_a_slow_down_is_told_before_what_is_unclear(against: Any) -> None:
    mine = {"backend": "mine"}
    with pytest.raises(GateFailed, match="1 of 2 pairs are slower"):
        against(
            [*timed(BASE), *timed(BASE, **mine)], [*timed(SLOWER), *timed([9.0, 13.0, 11.0], **mine)]
        ).gate(0.05)


def test_the_gate_says_what_it_did_not_see(against: Any) -> None:
    found = against([*timed(QUIET), *timed(QUIET, backend="gone")], timed(QUIET))
    assert found.gate(0.05).endswith("; 1 combination could not be compared")


@pytest.mark.parametrize("status", ["crashed", "timeout", "oom", "incorrect", "unavailable", "error"])
def test_the_gate_fails_for_a_combination_that_was_lost(against: Any, status: str) -> None:
    mine = {"backend": "mine"}
    lost = row(**mine, status=status, error="gone")
    found = against([*timed(QUIET), *timed(BASE, **mine)], [*timed(QUIET), lost])
    with pytest.raises(GateFailed, match=f"could not be measured again: lenet/mine/.*{status}: gone"):
        found.gate(0.05)


def test_the_gate_fails_where_the_backend_left_more_to_torch(against: Any) -> None:
    """A kernel that falls back is as fast as torch is: nothing is known of the kernel."""
    mine = {"backend": "mine"}
    whole, less = ([*timed(QUIET), *timed(QUIET, **mine, served_flops_fraction=share)] for share in (1, 0.4))
    with pytest.raises(
        GateFailed, match=r"in 1 of 2 pairs the backend left to torch .*: lenet/mine/.* \(100 % and 40 %\)"
    ):
        against(whole, less).gate(0.05)
    assert "none of 2 pairs" in against(less, whole).gate(0.05)  # more of its own is no regression


def test_the_gate_does_not_mind_what_failed_before(against: Any) -> None:
    failed = row(backend="mine", status="crashed")
    found = against([*timed(QUIET), failed], [*timed(QUIET), failed])
    assert found.left_out
    found.gate(0.05)


def test_the_gate_needs_a_time_to_judge(against: Any) -> None:
    with pytest.raises(NothingRan, match="nothing to judge"):
        against(trained([0.7, 0.7]), trained([0.7, 0.7])).gate(0.05)


def test_a_gate_finer_than_what_was_looked_for_is_refused(against: Any) -> None:
    sides = timed(QUIET), timed([time * 1.02 for time in QUIET])
    with pytest.raises(UsageError, match=r"a gate of 1\.0% is deaf: .* below 3\.0% .* min_effect=0\.01"):
        against(*sides).gate(0.01)
    with pytest.raises(GateFailed, match="the worst by 2"):
        against(*sides, min_effect=0.01).gate(0.01)
    with pytest.raises(GateFailed, match="the worst by 2"):
        against(*sides, min_effect=1e-3).gate(0.0)


def test_the_gate_looks_at_every_file(against: Any) -> None:
    with pytest.raises(GateFailed, match="in run1"):
        against(timed(BASE), timed(SLOWER), timed(BASE)).gate(0.05)
