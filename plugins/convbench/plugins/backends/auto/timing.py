"""Time several ways to do the same thing, fairly and no longer than it takes to tell them apart.

Every round runs each of them once, in an order drawn anew, so that a drift of the machine hits all alike. What
counts is the lower quartile: who shares the cores waits for whole time slices in most rounds, and some wait longer
for it than others would alone. Whoever is far behind leaves after a few rounds; the race ends when the first is
ahead of the second beyond chance, or when its time is up: whoever is ahead then is as good as the second, as far
as could be seen.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

FEWEST, MOST = 7, 60  # rounds
FAR_BEHIND = 1.25  # times the leader's lower quartile, by one's own fastest: out after three rounds
STEADY = 1.5  # times the lower quartile: what a median is at most where nobody else is at work
CHANCE = 0.02  # that a coin falls as the rounds did

Clock = Callable[[Callable[[], object]], float]
_now = time.perf_counter  # the clock itself, whatever a plugin puts in its place


def clock(wait: Callable[[], None]) -> Clock:
    """Seconds of one call, with what it has left to the device; `wait` returns when the device has done all."""

    def seconds(work: Callable[[], object]) -> float:
        wait()
        began = _now()
        result = work()
        wait()
        ended = _now()
        del result  # kept until here: to free it is no part of the work
        return ended - began

    return seconds


def race(
    runners: Mapping[str, Callable[[], object]], timed: Clock, seconds: float, seed: int
) -> dict[str, list[float]]:
    """The times of each runner in seconds, round by round; those that left early have fewer.

    Args:
        runners: that have run before: what a first call does is not to be seen here.
        timed: the clock.
        seconds: after which no further round begins, once there were `FEWEST`.
        seed: of the order.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    running = list(runners)
    if len(running) < 2:
        return {name: [timed(work) for _ in range(3)] for name, work in runners.items()}
    order = random.Random(seed)
    deadline = _now() + seconds
    for rounds in range(1, MOST + 1):
        order.shuffle(running)
        for name in running:
            times[name].append(timed(runners[name]))
        if rounds >= 3:
            leader = min(quartile(times[name]) for name in running)
            running = [name for name in running if min(times[name]) <= FAR_BEHIND * leader]
        if rounds >= FEWEST and (_now() >= deadline or _settled([times[name] for name in running])):
            break
    return times


def quartile(times: Sequence[float]) -> float:
    """The time that a quarter of the rounds were faster than."""
    return sorted(times)[len(times) // 4]


def steady(times: Sequence[float]) -> bool:
    """Whether rounds took alike, as they do on a machine that does nothing else."""
    return median(times) <= STEADY * quartile(times)


def _settled(times: list[list[float]]) -> bool:
    """Whether the fastest is faster than the next one in more rounds than a coin would show."""
    if len(times) < 2:
        return True
    first, second = sorted(times, key=quartile)[:2]
    wins = sum(a < b for a, b in zip(first, second, strict=True))
    rounds = len(first)
    tosses = sum(math.comb(rounds, k) for k in range(wins, rounds + 1))
    return bool(tosses / 2**rounds <= CHANCE)
