"""What else the machine did during a measurement: other programs, a hypervisor, throttling.

The kernel's counters are read before and after, never in between. What a machine does not report is None, and
leads to no flag.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from convbench.results.storage.environment import output, read_text
from convbench.suites.machine.nvml import Clocks, clocks_of

# the clocks themselves, whatever a plugin puts in their place
_wall, _own = time.perf_counter, time.process_time

CPUS = Path("/sys/devices/system/cpu")
STAT = Path("/proc/stat")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
GPU_COUNTERS = (  # microseconds in which the clock was held down, in nvidia-smi's words
    "sw_power_cap",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)
TICK_SECONDS = 0.01  # what /proc/stat counts in
LEAST_TICKS = 20  # in a shorter time one tick more or less would be a load

# the limits behind the flags; docs/measuring.md has their reasons
BUSY_SHARE = 0.1  # of the CPUs that could be used
STOLEN_SHARE = 0.02
DRIFT = 0.05


@dataclass(frozen=True)
class Snapshot:
    """The kernel's counters at one moment; times in seconds, summed over the CPUs this process may use."""

    wall: float
    cpus: int
    busy: float | None
    stolen: float | None
    own: float
    switches: int | None
    heat: int | None
    quota: int | None
    gpu: tuple[int, ...] | None
    clocks: Clocks | None = None


@dataclass(frozen=True)
class Observation:
    """What happened between two snapshots; its attributes are columns of a row.

    Attributes:
        other_load: CPUs that other programs kept busy, on average.
        steal_fraction: share of the time that a hypervisor gave to other machines.
        context_switches: times a thread of this process was taken off its CPU against its will.
        throttle_events: times the processor was slowed for its heat or this process's control group stopped
            for its quota, and reasons for which a GPU was slowed.
        cpu_mhz: mean clock of the CPUs, right afterwards.
        gpu_mhz: clock of a GPU's processors, right afterwards.
        gpu_memory_mhz: clock of its memory.
        throttle_reasons: why it was slowed, or is slowed before or afterwards.
    """

    other_load: float | None
    steal_fraction: float | None
    context_switches: int | None
    throttle_events: int | None
    cpu_mhz: float | None
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    throttle_reasons: str | None = None

    def flags(self, cpus: int) -> list[str]:
        """Why times may be wrong: `busy`, `throttled`."""
        busy = (self.other_load or 0.0) > BUSY_SHARE * cpus or (self.steal_fraction or 0.0) > STOLEN_SHARE
        return ["busy"] * busy + ["throttled"] * bool(self.throttle_events or self.throttle_reasons)


def snapshot(device: str = "cpu") -> Snapshot:
    """Read the counters now; a GPU's come from nvidia-smi, the rest takes well under a millisecond."""
    cpus = allowed_cpus()
    counted = cpu_seconds(cpus)
    return Snapshot(
        wall=_wall(),
        cpus=len(cpus),
        busy=counted[0] if counted else None,
        stolen=counted[1] if counted else None,
        own=_own(),
        switches=involuntary_switches(),
        heat=heat_events(cpus),
        quota=quota_events(),
        clocks=gpu_clocks(device),  # before anything that takes time
        gpu=gpu_braked(device),
    )


def since(before: Snapshot, device: str = "cpu") -> Observation:
    """What happened from then until now."""
    after = snapshot(device)
    seconds = after.wall - before.wall
    long_enough = seconds >= LEAST_TICKS * TICK_SECONDS
    other = stolen = None
    if long_enough and before.busy is not None and after.busy is not None:
        other = max(0.0, after.busy - before.busy - (after.own - before.own)) / seconds
    if long_enough and before.stolen is not None and after.stolen is not None:
        stolen = (after.stolen - before.stolen) / (seconds * after.cpus)
    reasons = [reason for each in (before.clocks, after.clocks) if each is not None for reason in each.brakes]
    throttled = [rise(before.heat, after.heat), rise(before.quota, after.quota)]
    if before.gpu is not None and after.gpu is not None:
        rises = [now > then for then, now in zip(before.gpu, after.gpu, strict=True)]
        throttled.append(sum(rises))
        reasons += [name for name, rose in zip(GPU_COUNTERS, rises, strict=True) if rose]
    return Observation(
        other_load=other,
        steal_fraction=stolen,
        context_switches=rise(before.switches, after.switches),
        throttle_events=None
        if all(each is None for each in throttled)
        else sum(each or 0 for each in throttled),
        cpu_mhz=clock_mhz(allowed_cpus()),
        gpu_mhz=after.clocks.gpu_mhz if after.clocks else None,
        gpu_memory_mhz=after.clocks.memory_mhz if after.clocks else None,
        throttle_reasons=" ".join(dict.fromkeys(reasons)) or None,
    )


class CpuUse:
    """How many CPUs all threads of this process keep busy on average, while a clock runs.

    `say` is told whenever it is started or stopped.
    """

    def __init__(self, say: Callable[[bool], object]) -> None:
        self._say = say
        self.own = self._wall = 0.0  # seconds
        self._helpers: float | None = None

    def turn(self, on: bool) -> None:
        """The clock was started or stopped."""
        if self._helpers is None:
            self._helpers = helpers_seconds()
        sign = -1 if on else 1
        self.own += sign * _own()
        self._wall += sign * _wall()
        self._say(on)

    @property
    def cpus(self) -> float:
        """While it ran; not before it is stopped."""
        return self.own / self._wall if self._wall > 0 else 0.0

    @property
    def helpers(self) -> float:
        """CPU time in seconds of processes that this one has started, since the clock was first started."""
        return helpers_seconds() - (self._helpers or 0.0)


def helpers_seconds() -> float:
    """CPU time of all processes that this one has started, in sessions of their own and ended ones as well.

    Those whose parent has ended are children of the process that workers are forked from.
    """
    import psutil

    me = psutil.Process()
    top = (me.parent() if os.getsid(0) == me.pid else None) or me  # a worker leads a session
    total = 0.0
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended meanwhile
            # its own, and that of its children that have ended
            total += sum(process.cpu_times()[2 if process == me else 0 : 4])
    return total


def rise(before: int | None, after: int | None) -> int | None:
    """By how much a counter has risen; None where there is no such counter."""
    return None if before is None or after is None else after - before


def drifts(times: Sequence[float]) -> bool:
    """Whether the later half of these step times differs from the earlier by more than their scatter explains.

    The medians of the halves must be apart by more than DRIFT, and their 95% intervals must not touch.
    """
    from convbench.suites.measure.stopping import median_bounds

    half = len(times) // 2
    first, second = median_bounds(times[:half]), median_bounds(times[half:])
    if first is None or second is None:
        return False
    apart = second.low > first.high or first.low > second.high
    return apart and abs(second.value / first.value - 1) > DRIFT


def allowed_cpus() -> list[int]:
    """The CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@cache
def first_allowed_cpus() -> list[int]:
    """The CPUs that this process could run on when this was first asked.

    The server of workers asks before OpenMP is loaded, which binds the thread that loads it to one of them.
    """
    return allowed_cpus()


def cpu_seconds(cpus: Iterable[int]) -> tuple[float, float] | None:
    """How long these CPUs were busy since the system started, and how long a hypervisor took them away."""
    names = {f"cpu{number}" for number in cpus}
    busy = stolen = 0
    found = False
    for line in (read_text(STAT) or "").splitlines():
        name, *fields = line.split()
        if name in names and len(fields) >= 8:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
            found = True
    return (busy * TICK_SECONDS, stolen * TICK_SECONDS) if found else None


def involuntary_switches() -> int | None:
    """How often the threads of this process lost their CPU to another one."""
    try:
        import resource
    except ImportError:  # not on this system
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def heat_events(cpus: Iterable[int]) -> int | None:
    """How often these CPUs were slowed for their heat."""
    counts = []
    for number in cpus:
        text = read_text(CPUS / f"cpu{number}" / "thermal_throttle" / "core_throttle_count")
        if text is None:
            return None
        with suppress(ValueError):
            counts.append(int(text))
    return sum(counts) if counts else None


def quota_events() -> int | None:
    """How often the control group of this process was stopped because its share of CPU time was used up."""
    for directory in control_groups():
        for line in (read_text(directory / "cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled" and value.isdigit():
                return int(value)
    return None


def gpu_clocks(device: str) -> Clocks | None:
    """The clocks of this GPU now; None for what is none."""
    if device.partition(":")[0] != "cuda":
        return None
    from convbench.suites.measure.devices import gpu_uuid

    uuid = gpu_uuid(device)
    return clocks_of(uuid) if uuid is not None else None


def gpu_braked(device: str) -> tuple[int, ...] | None:
    """How long this GPU's clock has been held down, by reason; None for what is none, or an older driver."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    from convbench.suites.measure.devices import gpu_uuid

    which = gpu_uuid(device) or index or 0
    query = ",".join(f"clocks_event_reasons_counters.{name}" for name in GPU_COUNTERS)
    try:
        line = output(
            "nvidia-smi",
            f"--id={which}",
            f"--query-gpu={query}",
            "--format=csv,noheader,nounits",
        )
        return tuple(int(cell) for cell in line.split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def control_groups() -> list[Path]:
    """Where the kernel may keep this process's group: version 2, version 1, or the root a container sees."""
    found = []
    for line in (read_text(OWN_GROUP) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            found.append(GROUPS / ("cpu" if number != "0" else "") / path.lstrip("/"))
    return [*found, GROUPS, GROUPS / "cpu"]


def clock_mhz(cpus: Iterable[int]) -> float | None:
    """The mean clock of these CPUs now, where the kernel tells it."""
    clocks = []
    for number in cpus:
        with suppress(ValueError):
            clocks.append(int(read_text(CPUS / f"cpu{number}" / "cpufreq" / "scaling_cur_freq") or "") / 1000)
    return sum(clocks) / len(clocks) if clocks else None
