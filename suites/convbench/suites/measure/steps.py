"""Time single training steps, phase by phase, keeping every sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from convbench.results.schema import PHASES
from convbench.suites.config.suite import Timing
from convbench.suites.machine.load import Observation, since, snapshot
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import Batches
from convbench.suites.measure.devices import clock, flusher, synchronize
from convbench.suites.measure.stopping import steps_suffice

Step = Callable[[Tensor, Callable[[], None]], None]  # takes a batch, and marks its beginning, phases and end

_now = time.perf_counter  # the clock itself, whatever a plugin puts in its place
BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Steps:
    """The times of successive steps in milliseconds, whole and by phase; a replayed step has no phases.

    `setup_seconds` is the first step, and its capture where there is one; `observed` what else the machine did
    from the first step of the warm-up to the last timed one. `host_ms` is how long the host was busy with a step,
    on average, before it could hand over the next one. `cold_ms` are the times of further steps, before each of
    which the device's caches were flushed.
    """

    step_ms: list[float]
    phases: dict[str, list[float]]
    setup_seconds: float
    observed: Observation
    host_ms: float
    cold_ms: list[float]

    @property
    def compile_seconds(self) -> float:
        """What the first step took beyond a usual one: compilation, autotuning, page faults."""
        return max(0.0, self.setup_seconds - median(self.step_ms) / 1000)


def time_steps(
    model: nn.Module,
    data: Batches,
    timing: Timing,
    *,
    lr: float,
    batch_size: int,
    seed: int,
    amp: Amp | None = None,
    graphed: GraphedStep | None = None,
    beat: Callable[[int], None] = lambda steps: None,
) -> Steps:
    """Train the `warmup_steps` and then the `steps` of `timing` on real batches, the latter timed.

    The first step (imports, compilation, autotuning, page faults) is reported apart. More steps follow, `steps`
    at a time and up to `max_steps`, until their median is known to `precision`. Fewer are taken, at least one,
    where they would take longer than `max_seconds`. `cold_steps` follow, each on flushed caches. With `graphed`,
    captured steps are replayed, with their own learning rate and batch size. About once a second, between two
    steps, `beat` is called with the number of timed steps.
    """
    device = data.device
    warmup_steps, steps, max_seconds = timing.warmup_steps, timing.steps, timing.max_seconds
    amp = amp or Amp()
    optimizer = amp.sgd(model, lr) if data.grad_output is None else _Discard(model, data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(device)
    batches = order[: len(order) // batch_size * batch_size].split(batch_size)  # whole ones only
    model.train()

    def eager(index: Tensor, mark: Callable[[], None]) -> None:
        mark()
        x, y = data.batch(index)
        mark()
        with amp.autocast():
            objective = data.objective(model(x), y)
        mark()
        optimizer.zero_grad()
        amp.backward(objective, data.grad_output)
        mark()
        amp.update(optimizer)
        mark()

    began = _now()
    step: Step = eager
    names: tuple[str, ...] = PHASES
    if graphed is not None:
        names = ("step_ms",)
        graphed.capture(batch_size)
        graphed.start(order)
        step = _replaying(graphed)
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
    most = max(steps, timing.max_steps or 0)
    parts: dict[str, list[float]] = {name: [] for name in names}
    taken, in_time, host_seconds = 0, True, 0.0
    next_beat = _now() + BEAT_SECONDS
    while in_time and taken < most:
        ticks = clock(device)
        start = _now()
        for number in range(taken, min(taken + steps, most)):
            step(batches[(warmup_steps + number) % len(batches)], ticks.mark)
            taken += 1
            moment = _now()
            in_time = moment < deadline
            if not in_time:
                break
            if moment >= next_beat:
                next_beat = moment + BEAT_SECONDS
                beat(taken)
        host_seconds += _now() - start
        _add(parts, ticks.milliseconds())
        if steps_suffice(_whole(parts), timing.precision):
            break
    observed = since(before, str(device))

    flush = flusher(device, timing.cold_steps > 0)
    cold: dict[str, list[float]] = {name: [] for name in names}
    deadline = _now() + max_seconds
    ticks = clock(device)
    for number in range(timing.cold_steps):
        flush()
        step(batches[(warmup_steps + number) % len(batches)], ticks.mark)
        if _now() >= deadline:
            break
    _add(cold, ticks.milliseconds())
    return Steps(
        step_ms=_whole(parts),
        phases=parts if graphed is None else {},
        setup_seconds=setup_seconds,
        observed=observed,
        host_ms=1000 * host_seconds / taken,
        cold_ms=_whole(cold),
    )


def _replaying(graphed: GraphedStep) -> Step:
    def step(index: Tensor, mark: Callable[[], None]) -> None:
        mark()
        graphed.replay()  # which batch is next, it knows itself
        mark()

    return step


def _add(parts: dict[str, list[float]], times: list[float]) -> None:
    """Sort the times between marks by phase; the time between two steps is ours, and not counted."""
    for at, name in enumerate(parts):
        parts[name] += times[at :: len(parts) + 1]


def _whole(parts: dict[str, list[float]]) -> list[float]:
    """The time of each whole step."""
    return [sum(step) for step in zip(*parts.values(), strict=True)]


class _Discard:
    """Stands for an optimizer where nothing is trained: it drops gradients."""

    def __init__(self, model: nn.Module, data: Batches) -> None:
        inputs, _ = data.batch(torch.empty(0, dtype=torch.int64))
        self._tensors = [*model.parameters(), inputs]

    def zero_grad(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

    def step(self) -> None:
        """Nothing is updated."""
