"""The kinds of charts, as data: `charts` draws them as inline SVG, `plots` with matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

NAMED_AT_ENDS = 8  # curves
NAMED_AT_POINTS = 10  # combinations under a roof


class Axis(NamedTuple):
    """What an axis measures; `zero` has it begin there, unless it is logarithmic."""

    label: str
    log: bool = False
    zero: bool = False


class Bar(NamedTuple):
    """One value with the interval that holds the true one, if that is known."""

    name: str
    hue: int
    value: float
    low: float | None
    high: float | None
    text: str
    label: str = ""  # what is written beside it, if not all of the text


@dataclass(frozen=True)
class Bars:
    """Values from zero, one beneath the other."""

    title: str
    axis: Axis
    bars: tuple[Bar, ...]
    note: str = ""


@dataclass(frozen=True)
class Dots:
    """Ratios with their intervals, beside a line at one; within `band` of it nothing matters."""

    title: str
    axis: Axis
    dots: tuple[Bar, ...]
    band: tuple[float, float]
    note: str = ""


class Strip(NamedTuple):
    """All values of one competitor, process by process."""

    name: str
    hue: int
    processes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Strips:
    """Distributions, one beneath the other."""

    title: str
    axis: Axis
    strips: tuple[Strip, ...]
    note: str = ""


class Stack(NamedTuple):
    """A whole and its parts."""

    name: str
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Stacks:
    """Shares of a whole, one beneath the other."""

    title: str
    axis: Axis
    parts: tuple[str, ...]
    stacks: tuple[Stack, ...]
    note: str = ""


class Curve(NamedTuple):
    """Points in order; several of one name are seeds of the same competitor."""

    name: str
    hue: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """Lines, or single points where a curve has one."""

    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    labelled: bool = False  # single points, with their names beside them
    note: str = ""

    @property
    def named_at_ends(self) -> bool:
        """Whether there is room for the names at the ends of the curves, so that no legend is needed."""
        return self.labelled or len({curve.name for curve in self.curves}) <= NAMED_AT_ENDS


class Roof(NamedTuple):
    """What a device was measured to do at most with one dtype: operations, and bytes of memory moved."""

    name: str
    gflops_per_second: float
    gb_per_second: float

    def attainable(self, intensity: float) -> float:
        """The speed that so many operations per byte allow, in GFLOP/s."""
        return min(self.gflops_per_second, intensity * self.gb_per_second)

    @property
    def ridge(self) -> float:
        """Operations per byte from which on arithmetic is the limit, and no longer memory."""
        return self.gflops_per_second / self.gb_per_second


class Spot(NamedTuple):
    """One combination under its roof: `network` is what all of its intensity run, `text` tells the rest."""

    name: str
    hue: int
    network: str
    intensity: float
    gflops_per_second: float
    text: str


@dataclass(frozen=True)
class Roofline:
    """Speeds over operations per byte, beneath what the device allows; both axes are logarithmic."""

    title: str
    x: Axis
    y: Axis
    roofs: tuple[Roof, ...]
    spots: tuple[Spot, ...]
    note: str = ""

    @property
    def named_at_points(self) -> bool:
        """Whether there is room for names beside the points, so that no legend is needed."""
        return len(self.spots) <= NAMED_AT_POINTS


Figure: TypeAlias = Bars | Dots | Strips | Stacks | Curves | Roofline
