"""Time single training steps, phase by phase, keeping every sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from convbench.results.schema import PHASES
from convbench.suites.batches import Batches
from convbench.suites.devices import clock, synchronize
from convbench.suites.load import Observation, since, snapshot
from convbench.suites.precision import steps_suffice

_now = time.perf_counter  # the clock itself, whatever a plugin puts in its place


@dataclass(frozen=True)
class Steps:
    """The times of successive steps in milliseconds, by phase.

    `setup_seconds` is the first step, `observed` what else the machine did from the first step of the warm-up to
    the last timed one.
    """

    phases: dict[str, list[float]]
    setup_seconds: float
    observed: Observation

    @property
    def step_ms(self) -> list[float]:
        """The time of each whole step."""
        return [sum(step) for step in zip(*self.phases.values(), strict=True)]

    @property
    def compile_seconds(self) -> float:
        """What the first step took beyond a usual one: compilation, autotuning, page faults."""
        return max(0.0, self.setup_seconds - median(self.step_ms) / 1000)


def time_steps(
    model: nn.Module,
    data: Batches,
    *,
    lr: float,
    batch_size: int,
    seed: int,
    warmup_steps: int,
    steps: int,
    max_seconds: float,
    max_steps: int | None = None,
    precision: float = math.inf,
) -> Steps:
    """Train `warmup_steps` and then `steps` steps on real batches, the latter timed.

    The first step (imports, compilation, autotuning, page faults) is reported apart. More steps follow, `steps`
    at a time and up to `max_steps`, until their median is known to `precision`. Fewer are taken, at least one,
    where they would take longer than `max_seconds`.
    """
    device = data.device
    optimizer = torch.optim.SGD(model.parameters(), lr=lr) if data.upstream is None else _Discard(model, data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(device)
    batches = order[: len(order) // batch_size * batch_size].split(batch_size)  # whole ones only
    model.train()

    def step(index: Tensor, mark: Callable[[], None]) -> None:
        mark()
        x, y = data.batch(index)
        mark()
        objective = data.objective(model(x), y)
        mark()
        optimizer.zero_grad()
        objective.backward(data.upstream)
        mark()
        optimizer.step()
        mark()

    began = _now()
    step(batches[0], clock(device).mark)
    synchronize(device)
    setup_seconds = _now() - began

    before = snapshot(str(device))
    deadline = began + max_seconds
    ticks = clock(device)
    for number in range(warmup_steps):
        step(batches[number % len(batches)], ticks.mark)
        if device.type == "cpu" and _now() >= deadline:
            break
    synchronize(device)

    deadline = _now() + max_seconds
    most = max(steps, max_steps or 0)
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    taken, in_time = 0, True
    while in_time and taken < most:
        ticks = clock(device)
        for number in range(taken, min(taken + steps, most)):
            step(batches[(warmup_steps + number) % len(batches)], ticks.mark)
            taken += 1
            in_time = _now() < deadline
            if not in_time:
                break
        # five marks a step: what lies between two steps is ours, and not counted
        times = ticks.milliseconds()
        for at, phase in enumerate(PHASES):
            phases[phase] += times[at :: len(PHASES) + 1]
        if steps_suffice([sum(each) for each in zip(*phases.values(), strict=True)], precision):
            break
    return Steps(phases, setup_seconds, since(before, str(device)))


class _Discard:
    """In place of an optimizer where nothing is trained: throws gradients away."""

    def __init__(self, model: nn.Module, data: Batches) -> None:
        inputs, _ = data.batch(torch.empty(0, dtype=torch.int64))
        self._tensors = [*model.parameters(), inputs]

    def zero_grad(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

    def step(self) -> None:
        """Nothing is updated."""
