"""What a worker reports is held against what its parent has seen."""

from __future__ import annotations

from typing import Any

import pytest

from convbench.registry import Accuracy, Backend
from convbench.suites.runner import plausibility
from convbench.suites.runner.plausibility import Watch, impossible_rate, wrong_clock, wrong_counts


def watch(seconds: float) -> Watch:
    return Watch(seconds, used=True)


def test_the_parents_clock_runs_while_the_workers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 4.0, 10.0, 15.0])
    monkeypatch.setattr(plausibility.time, "monotonic", lambda: next(times))
    clock = Watch()
    for on in (True, False, True, False):
        clock.turn(on)
    assert (clock.seconds, clock.used) == (8.0, True)


@pytest.mark.parametrize("claimed", [10.0, 9.0, 11.0])
def test_two_clocks_may_differ_a_little(claimed: float) -> None:
    assert wrong_clock(claimed, watch(10.0), gaps=False) is None


@pytest.mark.parametrize("claimed", [5.0, 8.0, 12.0, 100.0])
def test_two_clocks_may_not_differ_much(claimed: float) -> None:
    error = wrong_clock(claimed, watch(10.0), gaps=False)
    assert error == f"its steps took {claimed:.3g} s by its own clock, and 10 s by that of its parent"


def test_time_between_steps_is_no_step() -> None:
    assert wrong_clock(5.0, watch(10.0), gaps=True) is None
    assert wrong_clock(15.0, watch(10.0), gaps=True)


def test_short_timings_and_other_versions_that_say_nothing_are_not_judged() -> None:
    assert wrong_clock(0.01, watch(0.3), gaps=False) is None
    assert wrong_clock(5.0, Watch(), gaps=False) is None


DIRECT, SAVING = Backend("direct", "", dict), Backend("fft", "", dict, accuracy={"conv2d": Accuracy()})


@pytest.mark.parametrize(
    ("gflops", "backend", "device", "again", "wrong"),
    [
        (199.0, DIRECT, "cpu", 100.0, False),
        (201.0, DIRECT, "cpu", 100.0, True),
        (201.0, DIRECT, "cpu", 101.0, False),  # the first measurement was too low
        (900.0, DIRECT, "cpu", None, False),  # nobody knows
        (700.0, SAVING, "cpu", 100.0, False),
        (801.0, SAVING, "cpu", 100.0, True),
        (700.0, DIRECT, "cuda:0", 100.0, False),  # cuDNN has Winograd's algorithm as well
    ],
)
def test_more_arithmetic_than_the_device_does_is_impossible(
    gflops: float, backend: Backend, device: str, again: Any, wrong: bool
) -> None:
    error = impossible_rate(gflops, backend, device, 100.0, lambda: again)
    assert bool(error) == wrong


def test_there_are_no_more_images_than_steps_have() -> None:
    assert wrong_counts(60_000, 469, 128) is None
    assert wrong_counts(60_033, 469, 128) == "it saw 60,033 images in 469 steps of 128"
