"""How steady this machine's times are, and what to do about it: the checks of `convbench doctor`."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convbench.results.analysis.significance import ALPHA
from convbench.results.analysis.statistics import t_quantile
from convbench.results.storage import environment
from convbench.results.storage.environment import attempt, read_text
from convbench.suites.machine.load import BUSY_SHARE, STOLEN_SHARE, Observation, allowed_cpus, since, snapshot

State = Literal["ok", "warning", "unknown"]

PROBES, BLOCKS = 200, 10  # runs of a loop that takes about ten milliseconds, and the parts they are taken in
EFFECT = 0.05  # the difference between two backends that rounds are recommended for
SPREAD, DRIFT = 0.1, 0.05  # of the probe, above which a machine is called unsteady
NOTABLE = 0.05  # of a CPU: programs that take less are not named
NAMED = 5  # programs
SMT = Path("/sys/devices/system/cpu/smt/active")
POWER = Path("/sys/class/power_supply")


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and in a sentence what it means or what to do."""

    check: str
    state: State
    found: str
    advice: str


@dataclass(frozen=True)
class Program:
    """Another process, and how many CPUs it kept busy."""

    name: str
    pid: int
    cpus: float


def examine() -> list[Finding]:
    """Look at everything that makes times unsteady; takes two or three seconds."""
    before, seen = snapshot(), cpu_times()
    times = probe()
    observed, programs = since(before), busiest(seen, cpu_times())
    cpus = len(allowed_cpus())
    return [
        judge_probe(times),
        judge_load(observed, programs, cpus),
        judge_steal(observed),
        judge_throttling(observed),
        judge_governor(attempt(environment.governors), attempt(environment.turbo)),
        judge_cores(read_text(SMT), attempt(environment.cpu_quota), cpus),
        judge_openmp(os.environ),
        judge_power(),
        judge_clock(),
        *gpu_findings(),
    ]


def judge_openmp(variables: Mapping[str, str]) -> Finding:
    """Whether OpenMP may start fewer threads than torch asks for, and then waits for."""
    limit, dynamic = variables.get("OMP_THREAD_LIMIT"), variables.get("OMP_DYNAMIC", "false")
    limits = [f"OMP_THREAD_LIMIT={limit}"] * (limit is not None)
    limits += [f"OMP_DYNAMIC={dynamic}"] * (dynamic.strip().lower() in ("true", "1", "yes", "on"))
    if not limits:
        return Finding("openmp", "ok", "no limit on OpenMP's threads", "torch gets the threads it asks for")
    return Finding(
        "openmp",
        "warning",
        " and ".join(limits),
        "torch can wait forever for threads that it does not get: unset it; `--threads` sets their number",
    )


def probe() -> list[float]:
    """Times of a fixed piece of work, in seconds."""
    times = []
    for _ in range(PROBES):
        start = time.perf_counter()
        sum(number * number for number in range(100_000))
        times.append(time.perf_counter() - start)
    return times


def judge_probe(times: Sequence[float]) -> Finding:
    """Whether the same work takes the same time, and how many rounds that asks for."""
    deciles = statistics.quantiles(times, n=10)
    spread = (deciles[8] - deciles[0]) / statistics.median(times)
    half = len(times) // 2
    drift = statistics.median(times[half:]) / statistics.median(times[:half]) - 1
    rounds = rounds_needed(block_deviation(times))
    wanted = f"{rounds} rounds" if rounds is not None else "more than 100 rounds"
    found = f"{len(times)} runs of a fixed loop: spread {spread:.1%} (p10 to p90), drift {drift:+.1%}"
    if spread > SPREAD or abs(drift) > DRIFT:
        advice = (
            f"unsteady: a difference of {EFFECT:.0%} shows with at least {wanted}; other checks may say why"
        )
        return Finding("probe", "warning", found, advice)
    return Finding("probe", "ok", found, f"steady: a difference of {EFFECT:.0%} shows with {wanted} at best")


def block_deviation(times: Sequence[float]) -> float:
    """The standard deviation of the logarithms of the medians of successive blocks: as processes would differ."""
    length = len(times) // BLOCKS
    medians = [statistics.median(times[at * length : (at + 1) * length]) for at in range(BLOCKS)]
    return statistics.stdev(map(math.log, medians))


def rounds_needed(deviation: float) -> int | None:
    """The fewest rounds with which `convbench compare` could see an effect of `EFFECT`.

    At best: processes differ by more than the blocks of one, such as by where their memory lies.
    """
    for rounds in range(2, 101):
        margin = t_quantile(1 - ALPHA / 2, 2 * (rounds - 1)) * deviation * math.sqrt(2 / rounds)
        if margin <= math.log1p(EFFECT):
            return max(rounds, 3)
    return None


def judge_load(observed: Observation, programs: Sequence[Program], cpus: int) -> Finding:
    """Whether other programs use the CPUs."""
    named = [program for program in programs if program.cpus >= NOTABLE][:NAMED]
    takers = ", ".join(f"{each.name} (pid {each.pid}) takes {each.cpus:.0%} of a CPU" for each in named)
    if observed.other_load is None:
        load = os.getloadavg()[0]
        return Finding(
            "load", "unknown", f"{load:.2f} processes on average over a minute", "no /proc/stat here"
        )
    found = f"other programs take {observed.other_load:.2f} of {cpus} CPUs"
    if observed.other_load <= BUSY_SHARE * cpus:
        return Finding("load", "ok", found, takers or "no other program disturbs measurements")
    if not takers:
        return Finding(
            "load", "warning", found, "they run outside this container; measure when its host is idle"
        )
    advice = f"{takers}: close what can be closed, or wait; rounds timed meanwhile are flagged `busy`"
    return Finding("load", "warning", found, advice)


@dataclass(frozen=True)
class Ledger:
    """A moment, and by then the name and CPU seconds of every other process."""

    at: float
    processes: dict[int, tuple[str, float]]


def cpu_times() -> Ledger:
    """The CPU time of every other process so far."""
    import psutil

    found = {}
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        used = process.info["cpu_times"]
        if used is not None and process.info["pid"] != os.getpid():
            found[process.info["pid"]] = (process.info["name"], used.user + used.system)
    return Ledger(time.perf_counter(), found)


def busiest(before: Ledger, after: Ledger) -> list[Program]:
    """Other processes by the CPUs they used between the two, the busiest first."""
    programs = []
    for pid, (name, used) in after.processes.items():
        _, earlier = before.processes.get(pid, (name, 0.0))
        programs.append(Program(name, pid, max(0.0, used - earlier) / (after.at - before.at)))
    return sorted(programs, key=lambda program: -program.cpus)


def judge_steal(observed: Observation) -> Finding:
    """Whether a hypervisor gives CPU time of this machine to others."""
    if observed.steal_fraction is None:
        return Finding("hypervisor", "unknown", "no /proc/stat here", "stolen time cannot be seen")
    found = f"{observed.steal_fraction:.1%} of the CPU time was stolen"
    if observed.steal_fraction > STOLEN_SHARE:
        return Finding(
            "hypervisor",
            "warning",
            found,
            "other machines share the host: use a dedicated one, or more rounds",
        )
    return Finding("hypervisor", "ok", found, "no CPU time goes to other machines")


def judge_throttling(observed: Observation) -> Finding:
    """Whether heat, power or a quota slowed the CPUs during the probe."""
    if observed.throttle_events is None:
        return Finding(
            "throttling", "unknown", "no counters here", "whether heat slows the processor is unknown"
        )
    found = f"slowed or stopped {observed.throttle_events} times during the probe"
    if observed.throttle_events:
        return Finding(
            "throttling", "warning", found, "let it cool, raise the CPU quota, or lower the number of threads"
        )
    return Finding("throttling", "ok", found, "neither heat nor a quota slows it down")


def judge_governor(governors: Sequence[str] | None, turbo: bool | None) -> Finding:
    """Whether the clock follows the load."""
    boost = {True: "turbo on", False: "turbo off", None: "turbo unknown"}[turbo]
    if not governors:
        return Finding(
            "frequency",
            "unknown",
            f"no governor can be read, {boost}",
            "usual in a virtual machine: the host decides",
        )
    found = f"governor {', '.join(governors)}, {boost}"
    if list(governors) != ["performance"]:
        return Finding(
            "frequency",
            "warning",
            found,
            "the clock follows the load: sudo cpupower frequency-set --governor performance",
        )
    if turbo:
        advice = (
            "short runs are faster than long ones; for the steadiest times turn turbo off in the firmware"
        )
        return Finding("frequency", "ok", found, advice)
    return Finding("frequency", "ok", found, "the clock does not follow the load")


def judge_cores(smt: str | None, quota: float | None, cpus: int) -> Finding:
    """How many threads workers can use."""
    from convbench.suites.machine.resources import usable_cores

    threads = usable_cores()
    shared = " that share cores in pairs" if smt == "1" else ""
    found = f"{cpus} CPUs{shared}, {'no quota' if quota is None else f'a quota of {quota:g}'}"
    if quota is not None and quota < cpus:
        return Finding(
            "cores",
            "warning",
            found,
            f"a process that uses up the quota is paused: workers take {threads} threads; ask for whole CPUs",
        )
    return Finding("cores", "ok", found, f"workers take {threads} threads, one for each core")


def judge_power() -> Finding:
    """Whether the machine runs on a battery, which lowers the clock."""
    states = [read_text(path) for path in POWER.glob("*/status")]
    if not any(POWER.glob("*")):
        return Finding("power", "ok", "no battery", "nothing lowers the clock to save power")
    if "Discharging" in states:
        return Finding("power", "warning", "on battery", "plug it in: a battery lowers the clock")
    return Finding("power", "ok", "on mains", "no battery is in use")


def judge_clock() -> Finding:
    """Whether the clock is fine and fast enough for short steps."""
    readings = [time.perf_counter_ns() for _ in range(1001)]
    cost = (readings[-1] - readings[0]) / 1000
    resolution = time.get_clock_info("perf_counter").resolution * 1e9
    found = f"a reading costs {cost:.0f} ns, resolution {resolution:.0f} ns"
    if max(cost, resolution) > 1000:
        return Finding(
            "clock", "warning", found, "too coarse for steps below a millisecond: choose another clock source"
        )
    return Finding("clock", "ok", found, "five readings in a step cost next to nothing")


def gpu_findings() -> list[Finding]:
    """Which other programs use each GPU, and whether its driver stays loaded; nothing without a GPU."""
    try:
        return [judge_gpu(number, gpu, programs_on(number)) for number, gpu in enumerate(environment.gpus())]
    except (OSError, subprocess.SubprocessError):
        return []


def programs_on(number: int) -> list[str]:
    """The programs that compute on one GPU, as nvidia-smi has them: `pid, name`."""
    query = ("--query-compute-apps=pid,name", "--format=csv,noheader")
    return environment.output("nvidia-smi", f"--id={number}", *query).strip().splitlines()


def judge_gpu(number: int, gpu: dict[str, Any], programs: Sequence[str]) -> Finding:
    """One GPU."""
    clock = f"{gpu.get('clocks.sm')} of {gpu.get('clocks.max.sm')}"
    found = f"{gpu.get('name')}, {clock}, {gpu.get('temperature.gpu')} °C"
    if programs:
        who = "; ".join(line.replace(",", " is") for line in programs[:NAMED])
        return Finding(
            f"gpu {number}", "warning", found, f"other programs compute on it (pid {who}): close them"
        )
    if gpu.get("persistence_mode") == "Disabled":
        return Finding(f"gpu {number}", "warning", found, "keep its driver loaded: sudo nvidia-smi -pm 1")
    return Finding(f"gpu {number}", "ok", found, "no other program uses it")
