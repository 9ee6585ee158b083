"""Timing single steps: what is counted, what is left out, and when it is cut."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.results.schema import PHASES
from convbench.suites import stepping
from convbench.suites.batches import Resident
from convbench.suites.stepping import Steps, time_steps

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


def data(count: int = 90) -> Resident:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Resident(images, torch.arange(count) % 10, torch.float32, torch.contiguous_format)


def timed(model: nn.Module, **options: Any) -> Steps:
    return time_steps(model, data(), **OPTIONS | options)


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


def test_nothing_but_a_clock_read_is_between_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[str] = []

    class Ticks:
        def mark(self) -> None:
            marks.append("mark")

        def milliseconds(self) -> list[float]:
            return [1.0] * (4 * 5)

    monkeypatch.setattr(stepping, "clock", lambda device: Ticks())
    assert timed(Slow()).step_ms == [4.0] * 5
    assert len(marks) == 4 * (1 + 2) + 1 + 4 * 5
