"""The clock is right on every device of this machine: known times are found, and nothing queued is missed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from convbench.registry import Recipe
from convbench.results.schema import Combination
from convbench.suites.measure import devices
from convbench.suites.measure.devices import (
    EventClock,
    HostClock,
    available_devices,
    clock,
    select,
    synchronize,
)
from convbench.suites.processes.protocol import CombinationJob, ConformJob, ImageFile, PeaksJob
from convbench.suites.worker import conform, probe_jobs, setup

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


def test_a_worker_makes_its_device_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event is recorded on the current device's stream: of `cuda:1` it would otherwise time nothing."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    select(torch.device("cpu"))
    select(torch.device("cuda"))
    assert chosen == []
    select(torch.device("cuda:1"))
    assert chosen == [torch.device("cuda:1")]


@pytest.mark.parametrize("kind", ["combination", "peaks", "conform"])
def test_every_job_on_a_device_selects_it_before_it_works(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Selected(Exception):
        pass

    def stop(device: torch.device) -> None:
        raise Selected(device)

    for module in (setup, probe_jobs, conform):
        monkeypatch.setattr(module, "select", stop)
        monkeypatch.setattr(module, "set_process", lambda threads: True)
    monkeypatch.setattr(conform, "available_devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    combination = CombinationJob(
        kind="time",
        combination=Combination("lenet", "torch", "cuda:1", "float32", 2, "contiguous", "eager", 0),
        recipe=Recipe(),
        images=ImageFile("none", {}),
        num_classes=10,
        threads=1,
    )
    peak = PeaksJob(device="cuda:1", dtype="float32", threads=1)
    backend = ConformJob(
        backend="torch",
        device="cuda:1",
        dtypes=None,
        generated=0,
        seed=0,
        step_seconds=1.0,
        shrink_seconds=1.0,
        threads=1,
    )
    works = {
        "combination": lambda: setup.Setup(combination, 0),
        "peaks": lambda: probe_jobs.peaks(peak, print, 0),
        "conform": lambda: conform.conform(backend, print, 0),
    }
    with pytest.raises(Selected, match="cuda:1"):
        works[kind]()


@pytest.mark.skipif(len(ACCELERATORS) < 2, reason="no two accelerators on this machine")
def test_the_clock_of_a_second_accelerator_times_its_work() -> None:
    device = torch.device(ACCELERATORS[1])
    a = torch.randn(4096, 4096, device=device)
    select(device)
    try:
        a @ a
        synchronize(device)
        ticks = clock(device)
        ticks.mark()
        for _ in range(16):
            a @ a
        ticks.mark()
        (milliseconds,) = ticks.milliseconds()
    finally:
        select(torch.device(ACCELERATORS[0]))
    assert milliseconds > 0.5  # 2.2e12 operations in float32


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
