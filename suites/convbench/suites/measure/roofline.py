"""The roofline of a device: the most it computes and moves per second, measured on the device itself.

A step can be no faster than its layers, and a layer no faster than its operations at the peak of arithmetic or
its bytes at the peak of memory, whichever takes longer (Williams, Waterman & Patterson, "Roofline: an
insightful visual performance model for multicore architectures", CACM 52(4), 2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from convbench.suites.measure.devices import clock, last_cache_bytes
from convbench.suites.measure.op_counter import Work

PRODUCT_SECONDS, COPY_SECONDS = 0.3, 0.15  # about
SIZES = (256, 512, 1024, 2048, 4096, 8192)  # of square matrices; each is eight times the work of the last
REPEATS = 4  # of every kind of run at least, of which the first warms up
LEAST_COPY, MOST_COPY = 64 * 10**6, 256 * 10**6  # bytes of each tensor that is copied


@dataclass(frozen=True)
class Roof:
    """The peaks of one device for one dtype, in 10^9 operations and 10^9 bytes per second."""

    gflops_per_second: float
    gb_per_second: float

    def seconds(self, layers: Iterable[Work]) -> float:
        """The shortest time in which this device can do the layers one after the other."""
        return sum(
            max(layer.flops / self.gflops_per_second, layer.bytes / self.gb_per_second) / 1e9
            for layer in layers
        )

    def joined(self, other: Roof) -> Roof:
        """The higher of two measurements of the same peaks: noise only makes a device look slower."""
        return Roof(
            max(self.gflops_per_second, other.gflops_per_second), max(self.gb_per_second, other.gb_per_second)
        )


def measure_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Measure both peaks with the threads of this process, in about half a second.

    The best of all runs counts and not their median: a peak is what the device can do when nothing disturbs it.
    """
    arithmetic = _best_rate(device, _products(device, dtype), PRODUCT_SECONDS)
    memory = _best_rate(device, _copies(device, dtype), COPY_SECONDS)
    return Roof(arithmetic / 1e9, memory / 1e9)


Run = tuple[float, Callable[[], object]]  # how much it does, and the call that does it


def _best_rate(device: torch.device, runs: Iterator[Run], seconds: float) -> float:
    """The most that any run did per second: each kind a few times, then the best again until the time is over."""
    deadline = time.perf_counter() + seconds
    best, champion = 0.0, None
    for amount, call in runs:
        taken = _seconds(device, call, REPEATS)
        if amount / min(taken) > best:
            best, champion = amount / min(taken), (amount, call)
        if time.perf_counter() + 8 * sum(taken) > deadline:  # the next one may be eight times as long
            break
    assert champion is not None  # there is a first run
    amount, call = champion
    while time.perf_counter() < deadline:
        best = max(best, amount / min(_seconds(device, call, REPEATS)))
    return best


def _seconds(device: torch.device, call: Callable[[], object], repeats: int) -> list[float]:
    ticks = clock(device)
    ticks.mark()
    for _ in range(repeats):
        call()
        ticks.mark()
    return [each / 1000 for each in ticks.milliseconds()]


def _products(device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    """Matrix products of growing size, plain and as a 1x1 convolution: the libraries behind them differ."""
    for size in SIZES:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        image, kernel = a.reshape(1, size, size // 32, 32), b.reshape(size, size, 1, 1)
        yield 2.0 * size**3, partial(torch.mm, a, b)
        yield 2.0 * size**3, partial(torch.conv2d, image, kernel)


def _copies(device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    """A copy and a triad of tensors that no cache holds; counted are reads and writes, as STREAM does."""
    length = _copied_bytes(device) // dtype.itemsize
    a, b = (torch.randn(2**16, device=device).to(dtype).repeat(length // 2**16) for _ in range(2))
    out = torch.zeros_like(a)
    size = a.numel() * dtype.itemsize
    yield 2.0 * size, partial(out.copy_, a)
    yield 3.0 * size, partial(torch.add, a, b, alpha=3, out=out)


def _copied_bytes(device: torch.device) -> int:
    """The length of one tensor: with the others, several times the last cache."""
    if device.type != "cpu":
        return MOST_COPY
    return min(MOST_COPY, max(LEAST_COPY, 2 * last_cache_bytes(device)))
