"""Hold what a worker reports against what its parent has seen: what cannot be is incorrect, not fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from convbench.registry import Backend

SHARE, SECONDS = 0.1, 0.5  # by how much two clocks may differ: messages take a while on a busy machine
MOST = 2.0  # times the measured peak: more arithmetic than that nobody does
SAVED = 4.0  # by which Winograd's and Fourier's algorithms may divide it


@dataclass
class Watch:
    """The parent's own clock, which runs while that of the worker does; `seconds` is the sum."""

    seconds: float = 0.0
    began: float | None = None
    used: bool = False
    now: Callable[[], float] | None = None  # this process's where None

    def turn(self, on: bool) -> None:
        """Start or stop it."""
        now = (self.now or time.monotonic)()
        if self.began is not None:
            self.seconds += now - self.began
        self.began, self.used = (now if on else None), True


def wrong_clock(claimed: float, watch: Watch, gaps: bool) -> str | None:
    """What is wrong with the seconds that a worker claims for steps; with `gaps`, there is time between them."""
    slack = SHARE * watch.seconds + SECONDS
    too_short = claimed < watch.seconds - slack and not gaps
    if not watch.used or not (too_short or claimed > watch.seconds + slack):
        return None
    return f"its steps took {claimed:.3g} s by its own clock, and {watch.seconds:.3g} s by that of its parent"


def impossible_rate(
    gflops: float, backend: Backend, device: str, peak: float, measure_again: Callable[[], float | None]
) -> str | None:
    """What is wrong with so many 10^9 FLOP/s, counted as in direct convolution.

    Args:
        gflops: what the steps claim.
        backend: that took them. One that declares an accuracy of its own, and libraries of other devices than
            CPUs, may do less arithmetic than direct convolution.
        device: on which.
        peak: of the device, in 10^9 FLOP/s, measured when the run began.
        measure_again: measures it once more; None where other programs are running.
    """
    most = MOST * (SAVED if backend.accuracy or device != "cpu" else 1.0)
    if gflops <= most * peak:
        return None
    again = measure_again()
    if again is None or gflops <= most * max(peak, again):
        return None
    return (
        f"its steps claim {gflops:,.4g} GFLOP/s, and {device} does {max(peak, again):,.4g} in matrix products: "
        f"more than {most:g} times as much is not possible"
    )


def wrong_counts(images: int, steps: int, batch_size: int) -> str | None:
    """What is wrong with the images and steps that a training claims."""
    if images <= steps * batch_size:
        return None
    return f"it saw {images:,} images in {steps:,} steps of {batch_size:,}"
