"""What convbench itself costs: per step, per combination and per run, and that it grows no faster than they do."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from fake_sweep import EPOCHS, PROCESSES, SIZES, STEPS
from interleaving import interleave
from torch import Tensor, nn

from convbench.suites.config.suite import Timing
from convbench.suites.measure.data import ImageBatches, image_batches
from convbench.suites.measure.steps import time_steps
from convbench.suites.measure.training import train

ROUNDS = 9
FEW, MANY = 100, 1100  # steps; the difference is free of what a process pays once
LIMIT_STEP_US = 25.0
LIMIT_COMBINATION_MS = 50.0
LIMIT_GROWTH = 2.0  # of what a combination takes, from 100 to 1,000 of them
LIMIT_MEMORY_KB = 16.0  # per combination, while a run measures
LIMIT_PAGES_KB = 200.0  # per combination, while its pages are made: these hold every row and every curve
SWEEP = Path(__file__).parent / "fake_sweep.py"


class Nothing(nn.Module):
    """As little as can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.weight


def few_pixels(count: int) -> ImageBatches:
    images, labels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    return image_batches(images, labels, torch.device("cpu"), torch.float32, "contiguous", None)


def microseconds_per_step(steps: Callable[[int], object]) -> float:
    """The time of a further step: the difference between many and few."""
    seconds = []
    for count in (FEW, MANY):
        began = time.perf_counter()
        steps(count)
        seconds.append(time.perf_counter() - began)
    return 1e6 * (seconds[1] - seconds[0]) / (MANY - FEW)


def bare(count: int) -> None:
    """The loop one would write by hand."""
    model, data = Nothing(), few_pixels(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = torch.zeros(())
    for index in torch.arange(count).split(1):
        x, y = data.batch(index)
        loss = data.objective(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()


def timed(count: int) -> None:
    time_steps(
        Nothing(),
        few_pixels(count),
        Timing(warmup_steps=0, steps=count, max_seconds=1e9),
        lr=0.1,
        batch_size=1,
        seed=0,
    )


def trained(count: int) -> None:
    for _ in train(Nothing(), few_pixels(count), few_pixels(1), lr=0.1, epochs=1, batch_size=1, seed=0):
        pass


def compare_with_bare(benchmark: Any, what: str, steps: Callable[[int], None]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pair = interleave(
            benchmark, lambda: microseconds_per_step(steps), lambda: microseconds_per_step(bare), ROUNDS
        )
    finally:
        torch.set_num_threads(threads)
    cost = statistics.median(ours - theirs for ours, theirs in zip(pair.ours, pair.theirs, strict=True))
    pair.record(benchmark)
    print(
        f"{what}: {cost:+.1f} us a step beside a bare loop of {statistics.median(pair.theirs):.0f} us, "
        f"median of {ROUNDS} pairs"
    )
    assert cost < LIMIT_STEP_US


def test_a_timed_step_costs_microseconds_more_than_a_bare_one(benchmark: Any) -> None:
    """Five readings of the clock, of which four are outside the phases they begin or end."""
    compare_with_bare(benchmark, "timing", timed)


def test_a_training_step_costs_no_more_than_a_bare_one(benchmark: Any) -> None:
    compare_with_bare(benchmark, "training", trained)


def test_combinations_cost_the_same_however_many_there_are(benchmark: Any, tmp_path: Path) -> None:
    """With workers that answer at once: planning, scheduling, messages, rows and pages; processor time."""
    found: dict[int, dict[str, Any]] = {}

    def sweeps() -> None:
        for count in SIZES:
            command = [sys.executable, str(SWEEP), str(count), str(tmp_path / str(count))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[count] = json.loads(done.stdout.splitlines()[-1])

    benchmark.pedantic(sweeps, rounds=1)
    print(
        f"\nof one combination: {PROCESSES} processes, {STEPS} steps and {EPOCHS} epochs\n"
        "combinations  plan, ms  measure, ms  pages, ms  all, ms each  kB each  of pages  peak, MB"
    )
    costs, totals = {}, {}
    measuring, making = {}, {}  # kB of each combination
    for count, each in found.items():
        assert each["rows"] == count * PROCESSES
        stages = [each[name]["seconds"] for name in ("before", "began", "ended", "after")]
        plan, measure, pages = (1000 * (end - start) for start, end in pairwise(stages))
        totals[count] = plan + measure + pages
        costs[count] = totals[count] / count
        peaks = [1000 * each[name]["peak_mb"] for name in ("began", "ended", "after")]
        measuring[count], making[count] = ((end - start) / count for start, end in pairwise(peaks))
        print(
            f"{count:12,}  {plan:8.0f}  {measure:11.0f}  {pages:9.0f}  {costs[count]:12.1f}  "
            f"{measuring[count]:7.1f}  {making[count]:8.1f}  {each['after']['peak_mb']:8.0f}"
        )
    further = (totals[1000] - totals[10]) / 990
    print(f"a further combination {further:.1f} ms, a run of none {totals[10] - 10 * further:.0f} ms")
    benchmark.extra_info.update({f"ms_per_combination_{count}": cost for count, cost in costs.items()})
    assert max(costs.values()) < LIMIT_COMBINATION_MS
    assert costs[1000] < LIMIT_GROWTH * costs[100]
    assert measuring[1000] < LIMIT_MEMORY_KB
    assert making[1000] < LIMIT_PAGES_KB
