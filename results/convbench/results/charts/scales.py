"""Axes of charts: where a value lies, and which values are worth a tick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LARGEST = 1e300  # room around it is still a number
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, laid out from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            math.log(each) if self.log else each for each in (self.low, self.high, max(value, self.floor))
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    @property
    def floor(self) -> float:
        """What a value is drawn as at least."""
        return self.low if self.log else -math.inf

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About `count` round values with their texts."""
        values = logarithmic(self.low, self.high, count) if self.log else linear(self.low, self.high, count)
        return [(value, short(value)) for value in values]


def fitted(values: Iterable[float], start: float, end: float, *, log: bool, zero: bool = False) -> Scale:
    """A scale on which all values fit, with a little room; from zero on if `zero`."""
    finite = [value for value in values if abs(value) < LARGEST and (value > 1 / LARGEST or not log)]
    low, high = (min(finite), max(finite)) if finite else (1.0, 2.0)
    if log:
        room = max((high / low) ** 0.06, 1.05)
        return Scale(low / room, high * room, start, end, log=True)
    low = min(low, 0.0) if zero else low
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(low if zero else low - room, high + room, start, end)


def linear(low: float, high: float, count: int) -> list[float]:
    """Round values at even distances."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(each * magnitude for each in STEPS if each * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def logarithmic(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, with 2 and 5 between them where few of them fit; else round values."""
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [
            digit * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for digit in digits
        ]
        found = [value for value in found if low <= value <= high]
        if len(found) >= min(count, 3):
            return every(found, count + 1)
    return [value for value in linear(low, high, count) if value > 0]


def every(values: Sequence[float], most: int) -> list[float]:
    """At most so many of them, at even distances."""
    return list(values[:: math.ceil(len(values) / most)])


def short(value: float) -> str:
    """A tick's text."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1e6:
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    return f"{value:.2g}"


def positive(value: float | None) -> bool:
    """Whether it is a number that every axis, a logarithmic one too, has a place for."""
    return value is not None and 1 / LARGEST < value < LARGEST
