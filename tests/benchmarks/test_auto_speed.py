"""`auto` beside backends it chooses from: whole training steps of the book's networks, in turn in one process.

`python tests/benchmarks/test_auto_speed.py [NETWORK ...]` prints the table of docs/auto.md.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convbench.registry import create_model, discover, use_backend
from convbench.registry.records import choices_of
from convbench.suites.machine.resources import usable_cores
from convbench.suites.worker.setup import set_process

SINGLE = ("torch", "native", "im2col")  # the others are slower by far on a CPU
SECONDS = 12.0  # for each network
FEWEST = 5  # rounds


@dataclass(frozen=True)
class Network:
    """A network at a size that its steps take less than a second or two at."""

    name: str
    batch_size: int
    pixels: int
    singles: tuple[str, ...] = SINGLE


NETWORKS = (
    Network("lenet", 128, 28),
    Network("lenet_bn", 128, 28),
    Network("alexnet", 8, 224),
    Network("vgg11_narrow", 8, 224),
    Network("nin", 8, 224),
    Network("googlenet", 32, 96),
    Network("resnet18", 32, 96),
    Network("resnext", 32, 96, ("torch", "native")),
    Network("densenet", 32, 96),
)


@dataclass(frozen=True)
class Figures:
    """Seconds of each step by backend, round by round; of the first step of `auto`; and what it chose."""

    seconds: Mapping[str, list[float]]
    first_seconds: float
    chosen: str

    @property
    def best(self) -> str:
        """The single backend with the shortest median."""
        singles = {name: times for name, times in self.seconds.items() if name != "auto"}
        return min(singles, key=lambda name: statistics.median(singles[name]))

    def ratio(self, other: str) -> float:
        """The median over rounds of the other's time over that of `auto`."""
        pairs = zip(self.seconds[other], self.seconds["auto"], strict=True)
        return statistics.median(a / b for a, b in pairs)


def measure(network: Network, seconds: float = SECONDS) -> Figures:
    """Take turns in an order drawn anew for every round, after two steps of each."""
    backend = discover().backend("auto")
    torch.manual_seed(0)
    images = torch.randn(network.batch_size, 1, network.pixels, network.pixels)
    labels = torch.randint(10, (network.batch_size,))
    steps = {name: _step(network, name, images, labels) for name in network.singles}
    steps["auto"] = _step(network, backend, images, labels)
    first = {name: _timed(step) for name, step in steps.items()}
    for step in steps.values():
        step()
    names, order = list(steps), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["auto"]) < FEWEST:
        order.shuffle(names)
        for name in names:
            times[name].append(_timed(steps[name]))
    return Figures(times, first["auto"], choices_of(backend) or "")


def _step(network: Network, backend: Any, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    model = use_backend(create_model(network.name), backend)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _timed(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


@pytest.fixture(autouse=True, scope="module")
def as_in_a_worker() -> None:
    set_process(usable_cores())


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_no_single_backend_is_much_faster(benchmark: Any, network: Network) -> None:
    figures = benchmark.pedantic(measure, (network,), rounds=1)
    ratio = figures.ratio(figures.best)
    benchmark.extra_info.update(ratio=ratio, best=figures.best, chosen=figures.chosen)
    print(f"\n{network.name}: {ratio:.3f} times {figures.best}, over {len(figures.seconds['auto'])} rounds")
    assert ratio >= 0.97


def test_a_call_that_is_known_pays_next_to_nothing(benchmark: Any) -> None:
    """What `auto` adds to a call, beside the call itself: a convolution so small that it is torch's."""
    op = discover().backend("auto").ops["conv2d"]
    arguments = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3), None, (1, 1), (0, 0), (1, 1), 1
    added = overhead(op, arguments)
    benchmark.pedantic(op, arguments, rounds=100, iterations=100)
    benchmark.extra_info["added_microseconds"] = 1e6 * added
    print(f"\n{1e6 * added:.2f} us a call")
    assert added < 10e-6


def overhead(op: Callable[..., Any], arguments: Sequence[Any], calls: int = 2000, rounds: int = 15) -> float:
    """Seconds that a call takes longer than torch's own; medians of interleaved rounds."""
    sides: dict[Callable[..., Any], list[float]] = {op: [], F.conv2d: []}
    with torch.no_grad():
        for side in sides:
            side(*arguments)
        for _ in range(rounds):
            for side, times in sides.items():
                began = time.perf_counter()
                for _ in range(calls):
                    side(*arguments)
                times.append((time.perf_counter() - began) / calls)
    return statistics.median(sides[op]) - statistics.median(sides[F.conv2d])


def table(networks: Sequence[Network]) -> str:
    """The table of docs/auto.md."""
    lines = [
        "| network | batch | auto, ms | best single one | its ms | times the best | times torch | rounds |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    ratios = []
    for network in networks:
        figures = measure(network)
        times = {name: 1000 * statistics.median(each) for name, each in figures.seconds.items()}
        best = figures.best
        ratios.append((figures.ratio(best), figures.ratio("torch")))
        lines.append(
            f"| {network.name} | {network.batch_size}x{network.pixels}x{network.pixels} | {times['auto']:.4g} "
            f"| {best} | {times[best]:.4g} | {ratios[-1][0]:.3f} | {ratios[-1][1]:.3f} "
            f"| {len(figures.seconds['auto'])} |"
        )
        others = ", ".join(f"{name} {ms:.4g} ms" for name, ms in times.items())
        print(
            f"{network.name}: first step {figures.first_seconds:.1f} s; {others}; {figures.chosen}",
            flush=True,
        )
    means = [math.exp(statistics.fmean(map(math.log, each))) for each in zip(*ratios, strict=True)]
    lines.append(f"| geometric mean | | | | | {means[0]:.3f} | {means[1]:.3f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    set_process(usable_cores())
    wanted = sys.argv[1:] or [network.name for network in NETWORKS]
    print(table([network for network in NETWORKS if network.name in wanted]))
