"""How near each combination came to what its device allows: the roofline of a run.

Samuel Williams, Andrew Waterman, David Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52(4), 2009. A step's operations and the bytes that it has
to move at least are counted; the device's peaks were measured by the run and stand in its environment.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.standings import Group, Line, nothing_to_serve
from convbench.results.wording import number, percent


class Roof(NamedTuple):
    """The peaks of a device with one dtype, as measured: operations, and bytes of memory moved."""

    name: str
    gflops_per_second: float
    gb_per_second: float

    def attainable(self, intensity: float) -> float:
        """The speed that so many operations per byte allow, in GFLOP/s."""
        return min(self.gflops_per_second, intensity * self.gb_per_second)

    @property
    def ridge(self) -> float:
        """Operations per byte above which arithmetic is the limit, and below which memory is."""
        return self.gflops_per_second / self.gb_per_second


@dataclass(frozen=True)
class Reached:
    """Where one combination stands: its operations per byte, its speed, and its roof if that was measured.

    `contested` is False where the network has no op that backends implement: all of them ran torch's code.
    """

    line: Line
    group: Group
    intensity: float
    gflops_per_second: float
    roof: Roof | None
    contested: bool = True

    @property
    def fraction(self) -> float | None:
        """The share of what the roof allows a step as a whole."""
        return self.gflops_per_second / self.roof.attainable(self.intensity) if self.roof else None

    @property
    def shares(self) -> str:
        """The shares of the attainable speed: of the step as a whole, and of its layers one after the other."""
        if self.fraction is None:
            return ""
        layers = self.line.roofline_fraction
        by_layer = "" if layers is None else f" ({percent(layers)} if every layer has a roof of its own)"
        return f", {percent(self.fraction)} of its roof{by_layer}"

    @property
    def text(self) -> str:
        """All of it in a line."""
        return (
            f"{self.line.name}, {self.group.conditions.title}: {number(self.gflops_per_second)} GFLOP/s at "
            f"{self.intensity:.3g} FLOPs per byte{self.shares}"
        )


def reached(contents: Contents) -> list[Reached]:
    """Each combination of which operations, bytes and time are known."""
    found = []
    for group in contents.table.groups:
        limit = roof(contents.environment, group.conditions.device, group.conditions.dtype)
        contested = not nothing_to_serve(group)
        for line in group.lines:
            intensity, speed = line.arithmetic_intensity, line.gflops_per_second
            if positive(intensity) and positive(speed):
                found.append(Reached(line, group, intensity, speed, limit, contested))
    return found


def roof(environment: Mapping[str, Any], device: str, dtype: str) -> Roof | None:
    """The measured peaks of a device with a dtype; None where environment.json has no such numbers."""
    devices = measured_peaks(environment)
    of_device = devices.get(device) or devices.get(device.partition(":")[0]) or {}
    found = of_device.get(dtype) if isinstance(of_device, dict) else None
    if not isinstance(found, dict):
        return None
    flops, moved = found.get("gflops_per_second"), found.get("gb_per_second")
    return Roof(dtype, float(flops), float(moved)) if is_peak(flops) and is_peak(moved) else None


def peaks_of(environment: Mapping[str, Any]) -> list[tuple[str, Roof]]:
    """Every measured peak, with its device."""
    return [
        (device, each)
        for device, dtypes in measured_peaks(environment).items()
        if isinstance(dtypes, dict)
        for dtype in dtypes
        if (each := roof(environment, device, dtype))
    ]


def measured_peaks(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The peaks in environment.json, by device and dtype, as they are there."""
    peaks = environment.get("peaks")
    return peaks if isinstance(peaks, dict) else {}


def positive(value: float | None) -> TypeGuard[float]:
    """Whether it is a number that a logarithmic axis has a place for."""
    return value is not None and 1e-300 < value < 1e300


def is_peak(value: Any) -> TypeGuard[float]:
    """Whether a value from a file is a number that a logarithmic axis has a place for."""
    return isinstance(value, (int, float)) and positive(value)
