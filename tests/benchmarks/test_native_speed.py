"""`native` beside torch: forward and backward of single layers, in turn in one process, on the same threads.

`python tests/benchmarks/test_native_speed.py` prints the table of docs/native.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import discover
from convbench.suites.machine.resources import usable_cores
from convbench.suites.worker.setup import set_process

SECONDS = 4.0  # for each layer
SIZE = 2048  # of the matrix product that stands for the machine's peak
BACKEND = discover().backend("native")


@dataclass(frozen=True)
class Layer:
    """A layer and what is asked of it: times torch's speed, and a share of the peak."""

    name: str
    input: tuple[int, int, int, int]
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    times_torch: float = 1.0
    share_of_peak: float = 0.0


@dataclass(frozen=True)
class Pool:
    """A pooling of 2x2."""

    op: str
    input: tuple[int, int, int, int]
    times_torch: float = 2.0


LAYERS = (
    Layer("LeNet conv 1", (128, 1, 28, 28), 6, 5, padding=2, times_torch=3.0),
    Layer("LeNet conv 2", (128, 6, 14, 14), 16, 5, times_torch=1.3, share_of_peak=0.4),
    Layer("first 3x3", (128, 1, 28, 28), 16, 3, times_torch=3.0),
    Layer("narrow VGG", (32, 16, 64, 64), 32, 3, padding=1, times_torch=1.3, share_of_peak=0.4),
    Layer("ResNet stem", (32, 1, 96, 96), 64, 7, stride=2, padding=3, times_torch=3.0),
    Layer("ResNet block", (32, 64, 24, 24), 64, 3, padding=1, times_torch=0.8, share_of_peak=0.4),
)
POOLS = tuple(
    Pool(op, shape)
    for op in ("avg_pool2d", "max_pool2d")
    for shape in ((128, 6, 28, 28), (128, 16, 10, 10), (32, 32, 64, 64))
)


@dataclass(frozen=True)
class Figures:
    """Milliseconds of forward and of backward on either side, round by round, and the flops of a forward pass.

    Two threads wait for each other, so whoever takes the core of one stops both for a time slice of the system's.
    The median is what counts; the fastest tenth of the rounds beside it is what a machine left alone may give.
    """

    ours: list[tuple[float, float]]
    theirs: list[tuple[float, float]]
    flops: int

    @property
    def ratio(self) -> float:
        """The median over rounds of torch's time over ours, forward and backward together."""
        return statistics.median(sum(b) / sum(a) for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def fastest_ratio(self) -> float:
        """The same of the fastest tenth of either side."""
        return fastest_tenth(map(sum, self.theirs)) / fastest_tenth(map(sum, self.ours))

    def milliseconds(self, side: str, phase: int) -> float:
        """Forward (0) or backward (1) of `ours` or `theirs`, by the median."""
        return statistics.median(times[phase] for times in getattr(self, side))

    def gflops(self, side: str) -> float:
        """Forward, input gradient and weight gradient are as many flops each."""
        return 3 * self.flops / 1e6 / statistics.median(map(sum, getattr(self, side)))


def fastest_tenth(times: Iterable[float]) -> float:
    """The time that nine of ten are longer than."""
    ordered = sorted(times)
    return ordered[len(ordered) // 10]


def sample(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], leaves: tuple[Tensor, ...], flops: int
) -> Figures:
    """Take turns, each side first in every other round, for `SECONDS` and at least 9 rounds."""
    upstream = torch.randn_like(ours().detach())

    def measure(op: Callable[[], Tensor]) -> tuple[float, float]:
        start = time.perf_counter()
        output = op()
        middle = time.perf_counter()
        torch.autograd.grad(output, leaves, upstream)
        return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3

    sides: list[tuple[Callable[[], Tensor], list[tuple[float, float]]]] = [(ours, []), (theirs, [])]
    for op, _ in sides:
        measure(op)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(sides[0][1]) < 9:
        for op, times in sides:
            times.append(measure(op))
        sides.reverse()
    figures = dict(sides)
    return Figures(figures[ours], figures[theirs], flops)


def of_layer(layer: Layer) -> Figures:
    images = torch.randn(layer.input, requires_grad=True)
    weight = torch.randn(layer.filters, layer.input[1], layer.kernel, layer.kernel, requires_grad=True)
    bias = torch.randn(layer.filters, requires_grad=True)
    arguments = images, weight, bias, layer.stride, layer.padding
    positions = F.conv2d(*arguments)[:, 0].numel()
    return sample(
        lambda: BACKEND.ops["conv2d"](*arguments),
        lambda: F.conv2d(*arguments),
        (images, weight, bias),
        2 * positions * weight.numel(),
    )


def of_pool(pool: Pool) -> Figures:
    images = torch.randn(pool.input, requires_grad=True)
    ours, theirs = BACKEND.ops[pool.op], getattr(F, pool.op)
    return sample(lambda: ours(images, 2), lambda: theirs(images, 2), (images,), 0)


@cache
def peak() -> float:
    """GFLOP/s of the fastest of many matrix products."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / 1e9 / min(seconds)


@pytest.fixture(autouse=True, scope="module")
def as_in_a_worker() -> None:
    reason = BACKEND.unavailable()
    if reason is not None:
        pytest.skip(reason)
    set_process(usable_cores())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_convolution_beats_torch_where_torch_is_slow(benchmark: Any, layer: Layer) -> None:
    figures = benchmark.pedantic(of_layer, (layer,), rounds=1)
    share = figures.gflops("ours") / peak()
    benchmark.extra_info.update(
        ratio=figures.ratio,
        fastest_ratio=figures.fastest_ratio,
        gflops=figures.gflops("ours"),
        share_of_peak=share,
    )
    print(f"\n{layer.name}: {row(figures)}")
    assert figures.ratio >= layer.times_torch
    assert share >= layer.share_of_peak


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: f"{pool.op}-{'x'.join(map(str, pool.input))}")
def test_pooling_is_twice_as_fast(benchmark: Any, pool: Pool) -> None:
    figures = benchmark.pedantic(of_pool, (pool,), rounds=1)
    benchmark.extra_info.update(ratio=figures.ratio, fastest_ratio=figures.fastest_ratio)
    print(f"\n{pool.op} {pool.input}: {row(figures)}")
    assert figures.ratio >= pool.times_torch


def row(figures: Figures) -> str:
    """A layer's figures in words."""
    speed = f"; {figures.gflops('ours'):.0f} GFLOP/s of {peak():.0f}" if figures.flops else ""
    return (
        f"{figures.ratio:.2f} times torch by the median of {len(figures.ours)} rounds, "
        f"{figures.fastest_ratio:.2f} by their fastest tenth{speed}"
    )


def table() -> str:
    """The table of docs/native.md."""
    from convbench.plugins.backends.native.library import instruction_set

    lines = [
        "| layer | native, ms | torch, ms | times torch | by fastest tenths | rounds | GFLOP/s | of the peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for layer in LAYERS:
        figures = of_layer(layer)
        share = figures.gflops("ours") / peak()
        lines.append(f"| {layer.name} | {times(figures)} | {figures.gflops('ours'):.0f} | {share:.0%} |")
    for pool in POOLS:
        shape = "x".join(map(str, pool.input))
        lines.append(f"| {pool.op} 2x2, {shape} | {times(of_pool(pool))} | | |")
    conditions = (
        f"{torch.get_num_threads()} threads, {instruction_set()}, torch {torch.__version__}; a matrix product "
        f"of {SIZE} reaches {peak():.0f} GFLOP/s. Forward + backward, medians over rounds."
    )
    lines += ["", conditions]
    return "\n".join(lines)


def times(figures: Figures) -> str:
    """Five cells: forward + backward of either side, two ratios, and the rounds."""
    cells = [
        f"{figures.milliseconds(side, 0):.2f} + {figures.milliseconds(side, 1):.2f}"
        for side in ("ours", "theirs")
    ]
    return f"{' | '.join(cells)} | {figures.ratio:.2f} | {figures.fastest_ratio:.2f} | {len(figures.ours)}"


if __name__ == "__main__":
    set_process(int(sys.argv[1]) if len(sys.argv) > 1 else usable_cores())
    print(table())
