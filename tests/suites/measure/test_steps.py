"""Timing single steps: what is counted, what is left out, and when it is cut."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.results.schema import PHASES
from convbench.suites.config.suite import Timing
from convbench.suites.measure import devices
from convbench.suites.measure import steps as stepping
from convbench.suites.measure.data import ImageBatches
from convbench.suites.measure.steps import Steps, time_steps

OPTIONS: dict[str, Any] = {
    "lr": 0.1,
    "batch_size": 16,
    "seed": 0,
    "warmup_steps": 2,
    "steps": 5,
    "max_seconds": 60.0,
}


class Slow(nn.Module):
    """A forward pass that takes at least so many seconds, call by call."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.seconds = list(seconds)
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert self.training
        self.calls.append(x)
        time.sleep(self.seconds.pop(0) if self.seconds else 0.0)
        scores: Tensor = self.linear(x.flatten(1))
        return scores


def data(count: int = 90) -> ImageBatches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageBatches(images, torch.arange(count) % 10, torch.float32, torch.contiguous_format)


def timed(model: nn.Module, **options: Any) -> Steps:
    chosen = OPTIONS | options
    timing = Timing(**{each.name: chosen.pop(each.name) for each in fields(Timing) if each.name in chosen})
    return time_steps(model, data(), timing, **chosen)


def test_phases_sum_to_steps() -> None:
    steps = timed(Slow())
    assert tuple(steps.phases) == PHASES
    assert all(len(times) == 5 and min(times) > 0 for times in steps.phases.values())
    assert steps.step_ms == pytest.approx([sum(step) for step in zip(*steps.phases.values(), strict=True)])


def test_steps_cover_the_whole_time_between_them() -> None:
    model = Slow(*[0.0] * 3, *[0.02] * 5)
    began = time.perf_counter()
    steps = timed(model)
    assert 100 <= sum(steps.step_ms) < (time.perf_counter() - began) * 1000
    assert all(time >= 20 for time in steps.phases["forward_ms"])


def test_the_first_step_and_warm_up_are_apart() -> None:
    steps = timed(Slow(0.3, 0.2, 0.2))
    assert steps.setup_seconds >= 0.3
    assert len(steps.step_ms) == 5
    assert min(steps.step_ms) < 200


def test_it_takes_the_steps_it_was_asked_for_on_whole_batches() -> None:
    model = Slow()
    timed(model)
    assert [len(x) for x in model.calls] == [16] * (1 + 2 + 5)


def test_the_steps_train() -> None:
    model = Slow()
    before = model.linear.weight.clone()
    timed(model)
    assert not torch.equal(model.linear.weight, before)


def test_a_cut_keeps_the_steps_that_were_taken_at_least_one() -> None:
    steps = timed(Slow(0.0, *[0.05] * 5), warmup_steps=0, max_seconds=0.12)
    assert 1 <= len(steps.step_ms) <= 3  # the third step is the first to end behind 0.12 s
    assert len(timed(Slow(0.0, 0.3), warmup_steps=0, max_seconds=0.05).step_ms) == 1


def test_a_slow_warm_up_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow(*[0.05] * 4)
    steps = timed(model, warmup_steps=1000, steps=1, max_seconds=0.1)
    assert len(model.calls) < 10
    assert len(steps.step_ms) == 1


class Stopwatch:
    """A clock that moves only when told to, and a model that moves it by a second in its forward pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.now, self.reads, self.seconds = 0.0, 0, iter(seconds)
        monkeypatch.setattr(stepping, "_now", lambda: self.now)
        monkeypatch.setattr(devices, "_now_ns", self.read)

    def read(self) -> int:
        self.reads += 1
        return round(self.now * 1e9)

    def forward(self, x: Tensor) -> Tensor:
        self.now += next(self.seconds, 1.0)
        return x.flatten(1) * self.weight

    weight = nn.Parameter(torch.ones(64))


class Model(nn.Module):
    """A network whose forward pass takes the stopwatch's seconds."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch, self.weight = stopwatch, stopwatch.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.stopwatch.forward(x)


def test_a_fake_clock_is_read_five_times_a_step_and_finds_the_time_where_it_was_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopwatch = Stopwatch(monkeypatch)
    steps = timed(Model(stopwatch))
    assert stopwatch.reads == 5 * (1 + 2 + 5)
    assert steps.phases["forward_ms"] == [1000.0] * 5
    for phase in ("data_ms", "backward_ms", "optimizer_ms"):
        assert steps.phases[phase] == [0.0] * 5
    assert steps.step_ms == [1000.0] * 5


def test_what_runs_when_the_graph_is_freed_belongs_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Stopwatch):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            assert output.grad_fn is not None
            output.grad_fn.metadata["late"] = Finalized(self)
            return output

    class Finalized:
        def __init__(self, stopwatch: Stopwatch) -> None:
            self.stopwatch = stopwatch

        def __del__(self) -> None:
            self.stopwatch.now += 2.0

    assert timed(Model(Late(monkeypatch))).phases["backward_ms"] == [2000.0] * 5


def test_what_is_done_between_steps_is_in_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = Stopwatch(monkeypatch)

    def slow_look_at_the_clock() -> float:
        stopwatch.now += 100.0
        return stopwatch.now

    monkeypatch.setattr(stepping, "_now", slow_look_at_the_clock)
    assert timed(Model(stopwatch), max_seconds=1e9).step_ms == [1000.0] * 5


def test_it_says_about_once_a_second_how_many_steps_were_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a quarter of a second; the last one is the end of it."""
    beats: list[int] = []
    stopwatch = Stopwatch(monkeypatch, *[0.25] * 100)
    steps = timed(Model(stopwatch), steps=15, beat=beats.append)
    assert beats == [4, 8, 12]
    assert steps.step_ms == [250.0] * 15


def test_compilation_is_what_the_first_step_takes_beyond_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = timed(Model(Stopwatch(monkeypatch, 7.5)))
    assert steps.setup_seconds == 7.5
    assert steps.compile_seconds == 6.5


def test_without_a_ceiling_the_number_of_steps_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = [1.0] * 3 + [1.0, 9.0] * 100
    options = {"steps": 20, "precision": 0.01, "max_seconds": 1e9}
    assert len(timed(Model(Stopwatch(monkeypatch, *wild)), **options).step_ms) == 20


def test_steps_go_on_until_their_median_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 10, "max_steps": 45, "precision": 0.02, "max_seconds": 1e9}
    steady = [1.0 + 0.01 * (number % 3) for number in range(200)]
    assert len(timed(Model(Stopwatch(monkeypatch, *steady)), **options).step_ms) == 10
    # half of the first ten are others: not until there are twenty is it clear where the median is
    settling = [1.0, 1.0, 1.0, *[1.0 + 0.3 * (number % 2) for number in range(10)], *[1.3] * 200]
    assert len(timed(Model(Stopwatch(monkeypatch, *settling)), **options).step_ms) == 20
    wild = [1.0] * 3 + [1.0, 9.0] * 100
    assert len(timed(Model(Stopwatch(monkeypatch, *wild)), **options).step_ms) == 45


def test_whether_steps_go_on_does_not_depend_on_how_fast_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 10, "max_steps": 60, "precision": 0.03, "max_seconds": 1e9}
    shape = [1.0 + 0.1 * ((number * 7919) % 13) / 13 for number in range(200)]
    counts = {
        len(timed(Model(Stopwatch(monkeypatch, *(scale * each for each in shape))), **options).step_ms)
        for scale in (1.0, 4.0, 256.0)
    }
    assert len(counts) == 1


def test_more_steps_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = [0.0] * 3 + [1.0, 9.0] * 100
    stopwatch = Stopwatch(monkeypatch, *wild)
    steps = timed(Model(stopwatch), steps=10, max_steps=1000, precision=0.01, max_seconds=100.0)
    assert len(steps.step_ms) == 20
    assert stopwatch.now == 100.0


def test_the_machine_is_observed_while_steps_are_timed() -> None:
    steps = timed(Slow(*[0.0] * 3, *[0.06] * 5))
    assert steps.observed.context_switches is not None
    assert steps.observed.other_load is not None
    assert 0 <= steps.observed.other_load < 1000
