"""What depends on the kind of device: discovery, synchronization, clocks, memory, graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from convbench.registry import Unsupported
from convbench.registry.errors import out_of_memory
from convbench.registry.ops.dtypes import Arithmetic
from convbench.results.storage.environment import read_text

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
        self._module = _module_with_events(device)
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


def select(device: torch.device) -> None:
    """Make a device this process's current one: events, streams, graphs and Triton's kernels go to that, whatever
    device the tensors around them are on."""
    if device.type != "cpu" and device.index is not None:  # without one, it is the current one that is meant
        torch.accelerator.set_device_index(device)


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


def obstacle_to_graphs(kind: str) -> str | None:
    """Why a device of this type captures no graphs, in one line; None where it does."""
    if kind == "cpu":
        return "mode 'graph' captures CUDA graphs; cpu has none"
    if getattr(getattr(torch, kind, None), "CUDAGraph", None) is None:
        return f"mode 'graph' captures CUDA graphs; torch.{kind} has none"
    return None


def capture(device: torch.device, work: Callable[[], None], warm_up: int) -> Callable[[], None]:
    """Record what `work` has the device do, after so many calls for real; the function returned does it again.

    Raises:
        Unsupported: this device captures no graphs, or the work does what no graph can hold.
    """
    obstacle = obstacle_to_graphs(device.type)
    if obstacle is not None:
        raise Unsupported(obstacle)
    module: Any = getattr(torch, device.type)
    with module.device(device):
        beside = module.Stream()  # a capture must not follow work on the default stream
        beside.wait_stream(module.current_stream())
        with module.stream(beside):
            for _ in range(warm_up):
                work()
        module.current_stream().wait_stream(beside)
        synchronize(device)
        graph = module.CUDAGraph()
        try:
            with module.graph(graph):
                work()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise Unsupported(
                f"its training step cannot be captured in a graph: {_first_line(error)}"
            ) from error
    replay: Callable[[], None] = graph.replay
    return replay


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def run_ahead_limit(device: torch.device, length: int) -> Callable[[], None]:
    """A function to call after each step: it keeps the host within one or two lengths of the device."""
    if device.type == "cpu":  # it has finished when its call returns
        return lambda: None
    event: Any = _module_with_events(device).Event
    previous: Any = None
    steps = 0

    def limit() -> None:
        nonlocal steps, previous
        steps += 1
        if steps % length:
            return
        if previous is not None:
            previous.synchronize()
        previous = event()
        previous.record()

    return limit


def _module_with_events(device: torch.device) -> Any:
    module: Any = getattr(torch, device.type, None)
    if getattr(module, "Event", None) is None:
        raise Unsupported(f"torch.{device.type} has no events, by which work on {device} would be timed")
    return module


LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
LEAST_FLUSH = 64 * 10**6  # bytes; of a device that does not say how large its cache is


def last_cache_bytes(device: torch.device) -> int:
    """The size of the device's last cache, 0 where it does not say."""
    if device.type == "cpu":
        kilobytes = (read_text(LAST_CACHE) or "").removesuffix("K")
        return int(kilobytes) * 1024 if kilobytes.isdigit() else 0
    module: Any = getattr(torch, device.type)
    return int(getattr(module.get_device_properties(device), "L2_cache_size", 0))


def flusher(device: torch.device, wanted: bool = True) -> Callable[[], object]:
    """A function that flushes the device's caches: it writes twice as much as the last-level cache holds."""
    if not wanted:
        return lambda: None
    size = max(LEAST_FLUSH, 2 * last_cache_bytes(device))
    return torch.empty(size, dtype=torch.uint8, device=device).zero_


def check_capability(device: torch.device, arithmetic: Arithmetic) -> None:
    """Refuse a dtype that this generation of GPUs lacks or only emulates; raises Unsupported."""
    if device.type != "cuda" or torch.version.hip is not None:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < arithmetic.capability:
        major, minor = arithmetic.capability
        raise Unsupported(
            f"dtype {arithmetic.name} needs compute capability {major}.{minor}, and {device} has "
            f"{capability[0]}.{capability[1]}"
        )


def gpu_uuid(device: str) -> str | None:
    """The driver's name of a CUDA device, whatever `CUDA_VISIBLE_DEVICES` hides; None where there is none."""
    if not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(torch.device(device)), "uuid", None)
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"
