"""The clock is right on every device of this machine: known times are found, and nothing queued is missed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from convbench.suites import devices
from convbench.suites.devices import (
    EventClock,
    HostClock,
    available_devices,
    clock,
    synchronize,
    work_on,
)

ACCELERATORS = [device for device in available_devices() if device != "cpu"]


def test_a_known_sleep_is_timed_and_its_neighbours_are_not() -> None:
    ticks = HostClock()
    ticks.mark()
    time.sleep(0.05)
    ticks.mark()
    ticks.mark()
    time.sleep(0.1)
    ticks.mark()
    first, between, second = ticks.milliseconds()
    assert first >= 50
    assert second >= 100
    assert between < 25


def test_twice_the_same_work_is_no_different_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A against A, on a clock of whole nanoseconds: what was read is what comes out, and nothing is lost."""
    readings = iter([0, 2_000_000, 4_000_000, 4_000_000, 9_500_000])
    monkeypatch.setattr(devices, "_now_ns", lambda: next(readings))
    ticks = HostClock()
    for _ in range(5):
        ticks.mark()
    assert ticks.milliseconds() == [2.0, 2.0, 0.0, 5.5]


def test_a_clock_with_one_mark_or_none_has_no_times() -> None:
    ticks = HostClock()
    assert ticks.milliseconds() == []
    ticks.mark()
    assert ticks.milliseconds() == []


def test_a_queue_is_timed_by_events_in_it_and_read_when_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes its work and returns at once: the time is the device's and not the call's."""
    queue: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            queue.append(self)

        def elapsed_time(self, end: Event) -> float:
            assert not queue, "read before the device was waited for"
            return end.at - self.at

        at = 0.0

    def work_off(device: torch.device) -> None:
        now = 0.0
        for entry in queue:
            if isinstance(entry, Event):
                entry.at = now
            else:
                now += entry
        queue.clear()

    class Module:
        pass

    Module.Event = Event  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "meta", Module, raising=False)
    monkeypatch.setattr(devices, "synchronize", work_off)
    ticks = clock(torch.device("meta"))
    assert isinstance(ticks, EventClock)
    ticks.mark()
    queue.append(22.5)
    ticks.mark()
    queue.append(245.0)
    ticks.mark()
    assert ticks.milliseconds() == [22.5, 245.0]


@pytest.mark.skipif(not ACCELERATORS, reason="no accelerator on this machine")
@pytest.mark.parametrize("name", ACCELERATORS)
def test_an_accelerators_clock_waits_for_its_work(name: str) -> None:
    """The same products once and sixteen times: the call returns at once, the clock knows the difference."""
    device = torch.device(name)
    a = torch.randn(4096, 4096, device=device)
    for _ in range(3):
        a @ a
    synchronize(device)
    once, often = [], []
    for _ in range(5):
        ticks = clock(device)
        ticks.mark()
        a @ a
        ticks.mark()
        for _ in range(16):
            a @ a
        ticks.mark()
        single, many = ticks.milliseconds()
        once.append(single)
        often.append(many)
    assert 8 < min(often) / min(once) < 32


def test_a_combinations_device_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are recorded there, and not in the queue of the first device."""
    current: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    for name in ("cpu", "cuda:1", "cuda", "cuda:0"):
        work_on(torch.device(name))
    assert current == [1, 0]


@pytest.mark.skipif(len(ACCELERATORS) < 2, reason="fewer than two accelerators on this machine")
def test_the_second_devices_work_is_timed_there() -> None:
    first, second = (torch.device(name) for name in ACCELERATORS[:2])
    work_on(second)
    try:
        a = torch.randn(4096, 4096, device=second)
        synchronize(second)
        ticks, start = clock(second), time.perf_counter()
        ticks.mark()
        for _ in range(20):
            a @ a
        ticks.mark()
        (found,) = ticks.milliseconds()
        taken = (time.perf_counter() - start) * 1000
    finally:
        work_on(first)
    assert found >= 0.5 * taken
