"""Time single training steps, phase by phase, keeping every sample."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convbench.results.schema import PHASES
from convbench.suites.batches import Batches
from convbench.suites.devices import clock, synchronize

_now = time.perf_counter  # the clock itself, whatever a plugin puts in its place


@dataclass(frozen=True)
class Steps:
    """The times of successive steps in milliseconds, by phase; `setup_seconds` is the first step."""

    phases: dict[str, list[float]]
    setup_seconds: float

    @property
    def step_ms(self) -> list[float]:
        """The time of each whole step."""
        return [sum(step) for step in zip(*self.phases.values(), strict=True)]


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
) -> Steps:
    """Train `warmup_steps` and then `steps` steps on real batches, the latter timed.

    The first step (imports, compilation, autotuning, page faults) is reported apart. Fewer steps are taken,
    at least one, where they would take longer than `max_seconds`.
    """
    device = data.device
    optimizer = torch.optim.SGD(model.parameters(), lr=lr) if data.upstream is None else _Discard(model, data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(device)
    batches = order[: len(order) // batch_size * batch_size].split(batch_size)  # whole ones only
    model.train()

    def step(index: Tensor) -> None:
        x, y = data.batch(index)
        ticks.mark()
        objective = data.objective(model(x), y)
        ticks.mark()
        optimizer.zero_grad()
        objective.backward(data.upstream)
        ticks.mark()
        optimizer.step()
        ticks.mark()

    began = _now()
    ticks = clock(device)
    step(batches[0])
    synchronize(device)
    setup_seconds = _now() - began

    deadline = began + max_seconds
    for number in range(warmup_steps):
        step(batches[number % len(batches)])
        if device.type == "cpu" and _now() >= deadline:
            break
    synchronize(device)

    deadline = _now() + max_seconds
    ticks = clock(device)
    ticks.mark()
    for number in range(steps):
        step(batches[(warmup_steps + number) % len(batches)])
        if _now() >= deadline:
            break
    times = ticks.milliseconds()
    return Steps({phase: times[at :: len(PHASES)] for at, phase in enumerate(PHASES)}, setup_seconds)


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
