"""Measure a combination in this worker, or in several processes that train together and that it starts.

torch's elastic launcher starts the ranks, and ends all when one has ended badly. Each does what a worker does,
checks included; the first rank's events go on to the run, and the results of all become one.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from convbench.results.schema import Status
from convbench.suites.machine.load import first_allowed_cpus
from convbench.suites.measure.ranks import Ranks
from convbench.suites.processes.protocol import (
    CombinationJob,
    Event,
    Failed,
    Lines,
    Measured,
    Result,
    Samples,
    Send,
    Waited,
    event_of,
)
from convbench.suites.processes.supervisor import THREAD_VARIABLES, ExitStatus
from convbench.suites.worker.jobs import measure_combination
from convbench.suites.worker.main import load_jobs, outcome, sender

WELL: tuple[Status, ...] = ("ok", "budget", "diverged")  # all ranks end so together
LARGEST = ("setup_seconds", "compile_seconds", "host_ms", "cold_step_ms", "peak_memory_mb")  # of any rank
SUMMED = ("other_load", "context_switches", "throttle_events")
GRACE_SECONDS = 5.0  # in which the launcher finds the rank for which another one has waited
EARLY_SECONDS, EARLY_SHARE = 4.0, 0.25  # before the worker would be killed, at most
OF_OTHERS = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset) by peer|DistBackend", re.IGNORECASE)
PR_SET_CHILD_SUBREAPER = 36  # Linux, <sys/prctl.h>


def run_combination(job: CombinationJob, send: Send, data: int) -> Result:
    """Verify, time or train a combination. One process verifies what several train."""
    if job.combination.world_size == 1:
        return measure_combination(job, send, data, Ranks())
    if (obstacle := obstacle_to_ranks(job.combination.device)) is not None:
        return Failed("unavailable", obstacle)
    if job.kind == "verify":
        return measure_combination(job, send, data, Ranks())
    return launch(job, send, data)


def obstacle_to_ranks(device: str) -> str | None:
    """Why this torch cannot let processes train together on such a device."""
    if not dist.is_available():
        return "this torch is built without torch.distributed"
    for name in ("gloo",) if device == "cpu" else ("gloo", "nccl"):
        if not dist.is_backend_available(name):
            return f"this torch is built without {name}, by which processes train together"
    return None


# --- in the worker that starts the ranks ---


@dataclass
class _Received:
    """What the ranks have sent."""

    send: Send
    samples: dict[int, Samples] = field(default_factory=dict)
    ended: dict[int, Result] = field(default_factory=dict)  # in the order in which it came
    waited: dict[int, Waited] = field(default_factory=dict)

    def take(self, rank: int, message: Event | Result) -> None:
        match message:
            case Waited():
                self.waited[rank] = message
            case Samples():
                self.samples[rank] = message
            case Measured() | Failed():
                self.ended.setdefault(rank, message)
            case _ if rank == 0 and not isinstance(message, Result):
                self.send(message)

    def follow(self, rank: int, lines: Lines, token: str) -> None:
        """Take what a rank sends until it has closed its pipe."""
        while lines.read():
            for message in lines.take():
                self.take(rank, event_of(message, token))


def launch(job: CombinationJob, send: Send, data: int) -> Result:
    """Have the ranks measure a combination, and make one result of theirs."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    began, world_size = time.monotonic(), job.combination.world_size
    token = os.urandom(16).hex()
    for name in THREAD_VARIABLES:  # of this process's children: nothing else is measured in it
        os.environ[name] = str(job.threads)
    os.environ.pop("OMP_PROC_BIND", None)  # every rank would bind its threads to the same cores
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:  # a host's name may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=token,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # what ranks print goes to the run's log
    )
    received = _Received(send)
    readers, writers = [], []
    for rank in range(world_size):
        read, write = os.pipe()
        writers.append(Connection(write, readable=False))
        reader = threading.Thread(target=received.follow, args=(rank, Lines(read), token), daemon=True)
        reader.start()
        readers.append(reader)
    died: dict[int, int] = {}
    try:
        elastic_launch(config, _rank)(
            job,
            token,
            began,
            cores_of_ranks(world_size, job.threads),
            writers,
            Connection(os.dup(data), writable=False),
        )
    except ChildFailedError as error:
        died = {rank: failure.exitcode for rank, failure in error.failures.items()}
    for writer in writers:
        writer.close()
    for reader in readers:
        reader.join(timeout=1.0)  # who has fled from a rank may hold its pipe
    shared = job.combination.device == "cpu" and job.threads * world_size > len(_all_cpus())
    return merged(received.ended, received.samples, received.waited, died, send, shared, job)


def merged(
    ended: Mapping[int, Result],
    samples: Mapping[int, Samples],
    waited: Mapping[int, Waited],
    died: Mapping[int, int],
    send: Send,
    shared_cores: bool,
    job: CombinationJob,
) -> Result:
    """The ranks' results as one: the first bad one, or figures of which each is that of the slowest rank.

    Args:
        ended: the results, in the order in which they came.
        samples: the step times.
        waited: the ranks that could not go on for others.
        died: the exit codes of ranks that ended badly.
        send: takes the step times.
        shared_cores: whether ranks are each other's load.
        job: of all.
    """
    for rank, result in ended.items():
        if isinstance(result, (Failed, Measured)) and result.status not in WELL:
            where = "" if result.status == "unsupported" else f"rank {rank}: "  # all of them say so
            return replace(result, error=f"{where}{result.error}")
    ranks = range(job.combination.world_size)
    results = [each for each in map(ended.get, ranks) if isinstance(each, Measured)]
    if len(results) < len(ranks):
        missing = [rank for rank in ranks if rank not in ended]
        return _failure(waited, died, missing, job.timeout_seconds or 0.0)
    if samples:
        send(slowest([samples[rank] for rank in ranks]))
    measures = dict(results[0].measures)
    for names, together in ((LARGEST, max), (SUMMED, sum)):
        for name in names:
            values = [each.measures[name] for each in results if each.measures.get(name) is not None]
            measures |= {name: together(values)} if values else {}
    flags = " ".join(str(each.measures.get("flags") or "") for each in results).split()
    if shared_cores:
        measures["other_load"] = None
        flags = [flag for flag in flags if flag != "busy"]
    measures["flags"] = " ".join(dict.fromkeys(flags)) or None
    return replace(results[0], measures=measures)


def _failure(
    waited: Mapping[int, Waited], died: Mapping[int, int], missing: Sequence[int], timeout: float
) -> Result:
    """Why there is no result: the rank that died, or else the one for which the others have waited."""
    for rank, code in died.items():
        if rank not in waited and code is not None:
            return Failed(
                "crashed", f"rank {rank}: its process {ExitStatus(code).description} without a result"
            )
    begun = {rank: waited[rank].exchanges if rank in waited else -1 for rank in missing}
    behind = [rank for rank in missing if begun[rank] == min(begun.values())]
    errors = [each.error for each in waited.values() if each.error is not None]
    if errors and len(behind) == len(missing):
        return Failed("error", f"the ranks lost each other: {errors[0]}")
    if errors:
        return Failed("crashed", f"rank {behind[0]}: its process ended without a result")
    seconds = f"no end after {round(timeout, 1):g} s"
    if len(behind) == len(missing):
        return Failed("timeout", f"{seconds}; its processes were killed")
    names = ", ".join(map(str, behind))
    return Failed("timeout", f"rank {names}: {seconds}, while the others waited for it; all were killed")


def slowest(samples: Sequence[Samples]) -> Samples:
    """Of each step the times of the rank that took longest."""
    ranks = [times.index(max(times)) for times in zip(*(each.step_ms for each in samples), strict=True)]

    def chosen(all_times: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(all_times[rank][step] for step, rank in enumerate(ranks))

    return Samples(
        chosen([each.step_ms for each in samples]),
        {name: chosen([each.phases[name] for each in samples]) for name in samples[0].phases},
    )


def cores_of_ranks(world_size: int, threads: int) -> list[list[int]] | None:
    """Cores for each rank, as many as it has threads; all of them where ranks have to share them."""
    cores = _all_cpus()
    if not hasattr(os, "sched_setaffinity"):
        return None
    if world_size * threads > len(cores):
        return [cores]
    return [cores[rank * threads : (rank + 1) * threads] for rank in range(world_size)]


def _all_cpus() -> list[int]:
    """The CPUs that this process may use; the first of each core before those that share one with it."""

    def siblings(cpu: int) -> str:
        with suppress(OSError):
            return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        return str(cpu)

    seen: dict[str, int] = {}
    places = []
    for cpu in first_allowed_cpus():
        core = siblings(cpu)
        places.append((seen.get(core, 0), cpu))
        seen[core] = seen.get(core, 0) + 1
    return [cpu for _, cpu in sorted(places)]


# --- in each rank ---


def _rank(
    job: CombinationJob,
    token: str,
    began: float,
    cores: list[list[int]] | None,
    writers: list[Connection],
    data: Connection,
) -> None:
    """Be one of the ranks: what `work` is for a worker."""
    rank, world_size = int(os.environ["RANK"]), job.combination.world_size
    if cores is not None:
        os.sched_setaffinity(0, cores[rank % len(cores)])  # before torch has started a thread
    if job.memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory_mb * 10**6 // world_size,) * 2)
    _keep_orphans()
    for other in writers[:rank] + writers[rank + 1 :]:
        other.close()
    tell = sender(token, writers[rank].fileno())

    def send(message: Event | Result) -> None:
        if rank == 0 or isinstance(message, (Result, Samples, Waited)):
            tell(message)

    load_jobs()
    ranks = _join(job, rank)
    if job.timeout_seconds is not None:
        _end_in_time(began + job.timeout_seconds, job.timeout_seconds, ranks, send)
    ready = time.monotonic() - began
    result = outcome(partial(measure_combination, ranks=ranks), job, send, data.fileno())
    if isinstance(result, Failed) and result.status == "error" and OF_OTHERS.search(result.error):
        send(Waited(ranks.exchanges, result.error))
        time.sleep(GRACE_SECONDS)
        os._exit(1)
    if isinstance(result, Measured) and "setup_seconds" in result.measures:
        setup_seconds = ready + result.measures["setup_seconds"]
        result = replace(result, measures={**result.measures, "setup_seconds": setup_seconds})
    send(result)
    if not (isinstance(result, Measured) and result.status in WELL):
        os._exit(1)  # which ends the others


def _join(job: CombinationJob, rank: int) -> Ranks:
    """Meet the other ranks. Decisions go by gloo, which keeps no GPU waiting."""
    import torch

    # none waits longer than the job may take; the default is half an hour
    waits = timedelta(seconds=job.timeout_seconds) if job.timeout_seconds else None
    device, backend = torch.device(job.combination.device), "gloo"
    if device.type == "cuda":
        device, backend = torch.device("cuda", (device.index or 0) + rank), "nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=waits, device_id=device if backend == "nccl" else None)
    control, tensors = (dist.new_group(backend=each, timeout=waits) for each in ("gloo", backend))
    return Ranks(rank, job.combination.world_size, control, tensors)


def _end_in_time(deadline: float, timeout: float, ranks: Ranks, send: Callable[[Waited], Any]) -> None:
    """Say just before the worker is killed how far this rank has come, and end."""

    def end() -> None:
        send(Waited(ranks.exchanges))
        time.sleep(1.0)  # for the others to say so, too
        os._exit(1)

    early = min(EARLY_SECONDS, EARLY_SHARE * timeout)
    timer = threading.Timer(max(0.0, deadline - early - time.monotonic()), end)
    timer.daemon = True
    timer.start()


def _keep_orphans() -> None:
    """Have processes that flee from this one become its own children, whose CPU time is looked at."""
    import ctypes
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
