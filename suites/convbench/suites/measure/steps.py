"""Time single training steps, phase by phase, keeping every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from random import SystemRandom
from statistics import median

import torch
from torch import Tensor, nn

from convbench.registry.integrity.model_state import OptimizerState
from convbench.results.schema import PHASES, PHASES_TOGETHER
from convbench.suites.config.suite import Timing
from convbench.suites.machine.load import Observation, since, snapshot
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.audit import Audit
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import Batches
from convbench.suites.measure.devices import clock, flusher, synchronize
from convbench.suites.measure.ranks import Ranks
from convbench.suites.measure.stopping import steps_suffice

Step = Callable[[Tensor, Callable[[], None]], None]  # takes a batch, and marks its beginning, phases and end

_now = time.perf_counter  # the clock itself, whatever a plugin puts in its place
BEAT_SECONDS = 1.0
SHIFTS = 4096  # distances by which numbers may be shifted in memory
FEW = 200  # of so many numbers one is changed


@dataclass(frozen=True)
class Steps:
    """The times of successive steps in milliseconds, whole and by phase; a replayed step has no phases.

    `setup_seconds` is the first step, and its capture where there is one; `observed` what else the machine did
    from the first step of the warm-up to the last timed one. `host_ms` is how long the host was busy with a step,
    on average, before it could hand over the next one, and `called_ms` the median time from the call of a step to
    its return. `cold_ms` are the times of further steps, before each of which the device's caches were flushed.
    """

    step_ms: list[float]
    phases: dict[str, list[float]]
    setup_seconds: float
    observed: Observation
    host_ms: float
    called_ms: float
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
    audit: Audit | None = None,
    ranks: Ranks | None = None,
    beat: Callable[[int], None] = lambda steps: None,
    running: Callable[[bool], None] = lambda on: None,
) -> Steps:
    """Train the `warmup_steps` and then the `steps` of `timing` on real batches, the latter timed.

    The first step (imports, compilation, autotuning, page faults) is reported apart. More steps follow, `steps`
    at a time and up to `max_steps`, until their median is known to `precision`. Fewer are taken, at least one,
    where they would take longer than `max_seconds`. `cold_steps` follow, each on flushed caches. With `graphed`,
    captured steps are replayed, with their own learning rate and batch size. About once a second, between two
    steps, `beat` is called with the number of timed steps. Between two of them, too, `audit` looks at steps that
    are not timed. Where nothing is trained, every step finds other numbers in the same tensors. `ranks` train
    together: all of them take as many steps, and begin each at the same time. `running` is told when timed steps
    begin, and when they end.
    """
    ranks = ranks or Ranks()
    device = data.device
    warmup_steps, steps, max_seconds = timing.warmup_steps, timing.steps, timing.max_seconds
    amp = amp or Amp()
    untrained = None if data.grad_output is None else _Untrained(model, data)
    optimizer = untrained or amp.sgd(model, lr)
    kept = None if isinstance(optimizer, _Untrained) else OptimizerState(optimizer)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(device)
    batches = order[: len(order) // batch_size * batch_size].split(batch_size)  # whole ones only
    model.train()
    retained = False

    def renew(few: bool = False) -> None:
        if untrained is not None:
            untrained.renew(few)

    def eager(index: Tensor, mark: Callable[[], None]) -> None:
        mark()
        x, y = data.batch(index)
        mark()
        with amp.autocast():
            objective = data.objective(model(x), y)
        mark()
        optimizer.zero_grad()
        ranks.mark = _nothing if retained else mark  # an audit counts marks
        amp.backward(objective, data.grad_output, retained)
        del x, y, objective  # what comes of freeing the graph belongs to the step
        mark()
        amp.update(optimizer)
        mark()

    began = _now()
    step: Step = eager
    names: tuple[str, ...] = PHASES if ranks.alone else PHASES_TOGETHER
    if graphed is not None:
        names = ("step_ms",)
        graphed.capture(batch_size)
        graphed.start(order)
        step = _replaying(graphed)
    renew()
    latest = batches[0]
    step(latest, clock(device).mark)
    synchronize(device)
    setup_seconds = _now() - began

    before = snapshot(str(device))
    deadline = began + max_seconds
    ticks = clock(device)
    for number in range(warmup_steps):
        renew()
        latest = batches[number % len(batches)]
        step(latest, ticks.mark)
        if device.type == "cpu" and not ranks.all(_now() < deadline):
            break
    synchronize(device)

    deadline = _now() + max_seconds
    most = max(steps, timing.max_steps or 0)
    parts: dict[str, list[float]] = {name: [] for name in names}
    called: list[float] = []
    taken, in_time, host_seconds = 0, True, 0.0
    next_beat = _now() + BEAT_SECONDS
    ranks.barrier()
    running(True)
    while in_time and taken < most:
        ticks = clock(device)
        start = _now()
        end = min(taken + steps, most)
        audited = () if audit is None else audit.of_timing(range(taken, end))
        for number in range(taken, end):
            if number in audited and audit is not None:
                paused = _now()
                synchronize(device)
                running(False)
                if graphed is None:
                    audit.unannounced(latest)
                index = audit.choice(batches[: warmup_steps + steps])
                if graphed is not None:
                    index = graphed.upcoming(batch_size)
                renew(few=graphed is None)
                audit.before()
                retained = audit.eager
                with audit.watching():
                    step(index, audit.mark)
                retained = False
                audit.after(index)
                renew()
                step(index, clock(device).mark)  # the caches are again those of a step
                ranks.barrier()
                running(True)
                start += _now() - paused
                deadline += _now() - paused
            renew()
            latest = batches[(warmup_steps + number) % len(batches)]
            began = _now()
            step(latest, ticks.mark)
            moment = _now()
            called.append(1000 * (moment - began))
            taken += 1
            in_time = ranks.all(moment < deadline)
            if not in_time:
                break
            if moment >= next_beat:
                next_beat = moment + BEAT_SECONDS
                beat(taken)
        host_seconds += _now() - start
        _add(parts, ticks.milliseconds())
        if ranks.all(steps_suffice(_whole(parts), timing.precision)):
            break
    running(False)
    if kept is not None:
        kept.check()
    observed = since(before, str(device))

    flush = flusher(device, timing.cold_steps > 0)
    cold: dict[str, list[float]] = {name: [] for name in names}
    deadline = _now() + max_seconds
    ticks = clock(device)
    for number in range(timing.cold_steps):
        renew()
        flush()
        step(batches[(warmup_steps + number) % len(batches)], ticks.mark)
        if not ranks.all(_now() < deadline):
            break
    _add(cold, ticks.milliseconds())
    return Steps(
        step_ms=_whole(parts),
        phases=parts if graphed is None else {},
        setup_seconds=setup_seconds,
        observed=observed,
        host_ms=1000 * host_seconds / taken,
        called_ms=median(called),
        cold_ms=_whole(cold),
    )


def _nothing() -> None:
    """Where no mark is wanted."""


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


class _Untrained:
    """Stands for an optimizer where nothing is trained: it drops gradients, and gives every step other numbers.

    The same tensors with the same numbers, step after step, would have the same answers, which could be kept.
    """

    def __init__(self, model: nn.Module, data: Batches) -> None:
        inputs, grad_output = data.batch(torch.empty(0, dtype=torch.int64))
        self._tensors = [*model.parameters(), inputs]
        self._random = SystemRandom()
        self._pools: list[tuple[Tensor, Tensor, Iterator[int]]] = []
        for tensor in (*self._tensors, grad_output):
            flat = tensor.detach().as_strided((tensor.numel(),), (1,))  # dense, in whatever memory format
            pool = torch.cat([flat, flat[:SHIFTS]])
            distances = range(1, len(pool) - len(flat) + 1)
            self._pools.append((flat, pool, cycle(self._random.sample(distances, len(distances)))))

    def renew(self, few: bool = False) -> None:
        """Shift the numbers of every tensor by a random distance; with `few`, change some numbers only."""
        for flat, pool, distances in self._pools:
            if few:
                places = torch.randint(len(flat), (max(1, len(flat) // FEW),), device=flat.device)
                flat[places] = 2 * flat.abs().max()
            else:
                first = next(distances)
                flat.copy_(pool[first : first + len(flat)])

    def zero_grad(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

    def step(self) -> None:
        """Nothing is updated."""
