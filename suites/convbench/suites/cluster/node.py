"""What runs on a machine of a cluster: a supervisor, as on one machine, in a process that Ray has started.

Ray gives that process one thread, the lowest priority, a choice of GPUs and much else; the worker processes that
measure must see none of it.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile

from convbench.suites.cluster.preflight import Description, describe
from convbench.suites.machine.load import Observation
from convbench.suites.processes.protocol import Event, Job
from convbench.suites.processes.supervisor import ExitStatus, Supervisor
from convbench.suites.runner.quiet import look_now


@dataclass(frozen=True)
class Ended:
    """How a worker ended, and what it printed."""

    status: ExitStatus
    printed: bytes


Sent = tuple[float, Event] | Ended  # an event with the machine's clock


@dataclass(frozen=True)
class Doing:
    """What a slot does, since when in seconds of Unix time, and what is left of its run, where it was told."""

    run: str
    slot: tuple[str, str, int]
    what: str
    since: float
    left: str = ""


class Node:
    """The supervisor of one slot, which it holds as long as it lives."""

    def __init__(self, device: str, run: str, slot: tuple[str, str, int], lease: float) -> None:
        """Of a slot with that key and kind of device, for a run of that name, which is given up if it says nothing
        for `lease` seconds."""
        self._device = device
        self._doing = Doing(run, slot, "prepares", time.time())
        self._lease, self._heard = lease, math.inf  # which begins with the first word of the run
        threading.Thread(target=self._end_with, args=(os.getppid(),), daemon=True).start()
        # priority and the like belong to a thread, and are inherited by what this thread starts
        self._thread = ThreadPoolExecutor(1, initializer=become_like, initargs=(os.getppid(),))
        self._printed = TemporaryFile()  # noqa: SIM115 - it goes with this process, however that ends
        self._log = Path(f"/proc/self/fd/{self._printed.fileno()}")

    def describe(self) -> Description:
        """What the machine is."""
        return self._thread.submit(describe).result()

    def start(self, threads: int) -> list[str]:
        """Start the supervisor; returns what of Ray's settings could not be undone, in words."""
        environment = environment_here(self._device)
        self._supervisor = self._thread.submit(
            lambda: Supervisor(self._log, threads, environment=environment)
        ).result()
        return self._thread.submit(still_unlike, os.getppid()).result()

    def run(self, job: Job, timeout: float) -> Iterator[list[Sent]]:
        """Run a job; what comes is handed on at once, several things together where they come fast."""
        arrived: SimpleQueue[Sent | None] = SimpleQueue()

        def on_event(event: Event) -> None:
            arrived.put((time.monotonic(), event))

        def over(future: Future[ExitStatus]) -> None:
            arrived.put(None)

        running = self._thread.submit(self._supervisor.run, job, timeout, on_event)
        running.add_done_callback(over)
        going = True
        while going:
            sent = [arrived.get()]
            while not arrived.empty():
                sent.append(arrived.get())
            going = None not in sent
            if known := [each for each in sent if each is not None]:
                yield known
        self._printed.seek(0)
        ended = Ended(running.result(), self._printed.read())
        self._printed.truncate(0)
        yield [ended]

    def data_digest(self) -> str:
        """The digest of the dataset that a survey has written."""
        with mmap.mmap(self._supervisor.data, 0, prot=mmap.PROT_READ) as data:
            return hashlib.sha256(data).hexdigest()

    def look(self) -> Observation:
        """What other programs do."""
        return self._thread.submit(look_now).result()

    def say(self, doing: str | None = None, left: str | None = None) -> None:
        """Remember what it does, or what is left of its run, for those who ask, and that the run is there."""
        self._heard = time.monotonic()
        if doing is not None:
            self._doing = replace(self._doing, what=doing, since=time.time())
        if left is not None:
            self._doing = replace(self._doing, left=left)

    def doing(self) -> Doing:
        """What it does."""
        return self._doing

    def end(self) -> None:
        """End this process, and with it its workers."""
        os._exit(0)

    def _end_with(self, daemon: int) -> None:
        """End it once Ray's daemon is gone, for Ray leaves a process that is at work, or once the run is silent,
        for a daemon that hangs or is not reached ends nothing."""
        while os.getppid() == daemon and time.monotonic() - self._heard < self._lease:
            time.sleep(1.0)
        self.end()


def become_like(daemon: int) -> None:
    """Give this thread the cores, the priority and the signals of Ray's daemon, which Ray does not change."""
    with suppress(OSError):  # it is another user's
        os.sched_setaffinity(0, os.sched_getaffinity(daemon))
    with suppress(OSError):  # only a privileged process may raise its priority
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, daemon))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(Path(f"/proc/{daemon}/oom_score_adj").read_text())
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def still_unlike(daemon: int) -> list[str]:
    """What of this thread differs from Ray's daemon all the same, and how to avoid it."""
    nice, wanted = (os.getpriority(os.PRIO_PROCESS, which) for which in (0, daemon))
    if nice == wanted:
        return []
    return [
        f"processes have the priority that Ray gives them (nice {nice}, and not {wanted}); "
        "start Ray with RAY_worker_niceness=0"
    ]


def environment_here(device: str) -> dict[str, str]:
    """The environment of the worker processes of this machine."""
    import psutil
    import ray

    asked = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    package = os.path.dirname(ray.__file__) + os.sep
    daemon = psutil.Process(os.getppid()).environ()
    return own_environment(daemon, os.environ, asked, device, sys.path, package)


def own_environment(
    daemon: Mapping[str, str],
    process: Mapping[str, str],
    asked: Mapping[str, str],
    device: str,
    path: Sequence[str],
    ray: str,
) -> dict[str, str]:
    """The environment of worker processes: the machine's own, and nothing that Ray set.

    Args:
        daemon: the environment of Ray's daemon on the machine, as it was started.
        process: that of the process which Ray has started; only its choice of a GPU is taken.
        asked: the variables that the user told Ray to set.
        device: the kind of device that the slot is of.
        path: where that process finds modules.
        ray: the directory of the package `ray`, which adds parts of itself to paths and to LD_PRELOAD.
    """
    found = {name: value for name, value in {**daemon, **asked}.items() if not name.startswith("RAY_")}
    preloaded = [each for each in found.pop("LD_PRELOAD", "").split(":") if each and not each.startswith(ray)]
    if preloaded:
        found["LD_PRELOAD"] = ":".join(preloaded)
    if device == "cuda" and "CUDA_VISIBLE_DEVICES" in process:
        found["CUDA_VISIBLE_DEVICES"] = process["CUDA_VISIBLE_DEVICES"]
    found["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in path if not entry.startswith(ray))
    return found
