"""Everything that depends on the kind of device: which there are, waiting for them, clocks, memory."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

_now_ns = time.perf_counter_ns  # the clock itself, whatever a plugin puts in its place


class Clock(Protocol):
    """Marks points in the device's work; the times between them are read afterwards."""

    def mark(self) -> None:
        """Note the present point."""

    def milliseconds(self) -> list[float]:
        """The times between successive marks."""


class HostClock:
    """For a device that has finished when its call returns, as the CPU has."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def mark(self) -> None:
        self._marks.append(_now_ns())

    def milliseconds(self) -> list[float]:
        return [(end - start) / 1e6 for start, end in zip(self._marks, self._marks[1:], strict=False)]


class EventClock:
    """For a device that works through a queue: events in the queue itself, read when it is empty."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = getattr(torch, device.type)
        self._marks: list[Any] = []

    def mark(self) -> None:
        event = self._module.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def milliseconds(self) -> list[float]:
        synchronize(self._device)
        return [start.elapsed_time(end) for start, end in zip(self._marks, self._marks[1:], strict=False)]


def clock(device: torch.device) -> Clock:
    """The clock that times work on this device."""
    return HostClock() if device.type == "cpu" else EventClock(device)


def available_devices() -> list[str]:
    """The torch devices of this machine: `cpu`, then every accelerator with its index."""
    devices = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        devices += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return devices


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB (10^6 bytes): the process's on the CPU, torch's on an accelerator."""
    if device.type == "cpu":
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    module: Any = getattr(torch, device.type)
    return float(module.max_memory_allocated(device)) / 1e6
