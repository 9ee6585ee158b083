"""Time several functions that compute the same, until the fastest is known or the time is up.

Every round runs each of them once, in a random order, so that a drift of the machine affects all alike. They are
compared by the lower quartile of their times, since on shared cores most rounds wait for time slices. A function
that is far slower is dropped after three rounds. The comparison ends when the fastest is faster than the second by
a sign test, or when its time is up: then no difference between the two could be measured.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

FEWEST, MOST = 7, 60  # rounds
FAR_BEHIND = 1.25  # a function whose fastest time is more than this times the leader's quartile is dropped
STEADY = 1.5  # the largest ratio of median to lower quartile on an idle machine
CHANCE = 0.02  # the significance level of the sign test

Clock = Callable[[Callable[[], object]], float]
_now = time.perf_counter  # kept here, so that no plugin can replace it


def clock(wait: Callable[[], None]) -> Clock:
    """Seconds of one call, its work on the device included; `wait` returns when the device is idle."""

    def seconds(work: Callable[[], object]) -> float:
        wait()
        began = _now()
        result = work()
        wait()
        ended = _now()
        del result  # kept until here: freeing it is not part of the work
        return ended - began

    return seconds


def compare(
    runners: Mapping[str, Callable[[], object]], timed: Clock, seconds: float, seed: int
) -> dict[str, list[float]]:
    """The times of each runner in seconds, round by round; those dropped early have fewer.

    Args:
        runners: the functions; each has run once before, for first calls take longer.
        timed: the clock.
        seconds: no round begins after so many, once there were `FEWEST`.
        seed: of the random order.
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
    """The lower quartile."""
    return sorted(times)[len(times) // 4]


def steady(times: Sequence[float]) -> bool:
    """Whether rounds took about the same time, as on an idle machine."""
    return median(times) <= STEADY * quartile(times)


def _settled(times: list[list[float]]) -> bool:
    """Whether the fastest is faster than the next one by a sign test over the rounds."""
    if len(times) < 2:
        return True
    first, second = sorted(times, key=quartile)[:2]
    wins = sum(a < b for a, b in zip(first, second, strict=True))
    rounds = len(first)
    tosses = sum(math.comb(rounds, k) for k in range(wins, rounds + 1))
    return bool(tosses / 2**rounds <= CHANCE)
