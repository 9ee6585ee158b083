"""Join a Ray cluster, find the slots that its machines offer, and run jobs on one of them."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread
from typing import Any

from convbench.registry import ConvbenchError, UsageError
from convbench.suites.cluster.blocks import Slot
from convbench.suites.cluster.node import Ended, Node
from convbench.suites.cluster.preflight import Description
from convbench.suites.machine.load import Observation
from convbench.suites.processes.protocol import Event, Job
from convbench.suites.processes.supervisor import ExitStatus

NAMESPACE = "convbench"  # of the actors of all runs, by which `convbench cluster status` finds them
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"  # variables that Ray reads, and sets itself
CPU_SLOT = "convbench_cpu"  # a resource that a machine offers: 1 for all of its cores
STORE_BYTES = 100 * 1024 * 1024  # of Ray's object store on this machine; messages are small
SILENT_SECONDS = 60.0  # beyond a job's timeout: then its machine is taken for lost
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 300.0  # for a question that takes seconds, and minutes on a slow file system
LEASE_SECONDS = 60.0  # without a word of the run: then a machine ends what it runs for it
SHUTDOWN_SECONDS = 15.0  # for Ray to end; a head that hangs would keep it for ever
STATUS = "status"  # the group of methods that answer while a job runs


class Lost(ConvbenchError):
    """A machine, or Ray's process on it, is gone."""


def import_ray() -> Any:
    """Ray, which is only needed here; raises UsageError where it is missing."""
    try:
        import ray
    except ImportError:
        raise UsageError(
            "a cluster needs Ray, which is not installed here: pip install 'convbench[cluster]'"
        ) from None
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, joined to the cluster of that address; `local` starts one on this machine, and ends it.

    Raises:
        UsageError: Ray is not installed, or there is no cluster.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"{address!r} is Ray Client's, which cannot run a suite: run it on a machine of the cluster with "
            "--cluster auto, or hand it over with `ray job submit`"
        )
    ray = import_ray()
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {
            "num_cpus": 1,  # Ray starts as many processes at once, and counts no cores for us
            "resources": {CPU_SLOT: 1},
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "_system_config": {"worker_niceness": 0, "worker_oom_score_adjustment": 0},
        }
    on_signal = signal.getsignal(signal.SIGTERM)
    host, _, port = address.rpartition(":")
    with own_token(ray) if address == "local" else nullcontext():
        try:
            if host and port.isdigit():  # Ray would wait for minutes
                socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            ray.init(**options, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"no Ray cluster can be joined at {address!r}: {reason}") from None
        # what the daemon of a lost machine logged last would go to standard output, and whatever is asked of Ray
        # after its end would start another one
        ray._private.worker._worker_logs_enabled = False
        ray._private.auto_init_hook.enable_auto_connect = False
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, on_signal)  # Ray has put its own in its place
        try:
            yield ray
        finally:
            ending = Thread(target=ray.shutdown, daemon=True)
            ending.start()
            ending.join(SHUTDOWN_SECONDS)
            raised = sys.exc_info()[1]
            if ending.is_alive() and isinstance(raised, ConvbenchError):
                raised.stuck = True


@contextmanager
def own_token(ray: Any) -> Iterator[None]:
    """A token for a Ray that starts here. Ray would leave one in the home directory, and from then on expect it of
    clusters that were started without."""
    if AUTH_MODE in os.environ:  # the user has said what is to be
        yield
        return
    before = dict(os.environ)
    os.environ[AUTH_TOKEN] = secrets.token_hex(32)
    try:
        yield
    finally:
        for name in (AUTH_MODE, AUTH_TOKEN):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def slots_of(nodes: Iterable[Mapping[str, Any]]) -> list[Slot]:
    """The slots that machines offer, from what `ray.nodes()` says."""
    offering = [each for each in nodes if each["Alive"] and each["Resources"].get(CPU_SLOT, 0) >= 1]
    hosts = Counter(each["NodeManagerHostname"] for each in offering)
    slots = []
    for each in offering:
        host, node_id = each["NodeManagerHostname"], each["NodeID"]
        name = host if hosts[host] == 1 else f"{host}-{node_id[:6]}"
        accelerators = int(each["Resources"].get("GPU", 0))
        slots.append(Slot(node_id, name, accelerators=accelerators))
        slots += [Slot(node_id, name, "cuda", number, accelerators) for number in range(accelerators)]
    return slots


class RemoteNode:
    """A slot that this run holds, and the supervisor there: it runs jobs as a supervisor of this machine does."""

    def __init__(self, ray: Any, slot: Slot, run_id: str, on_printed: Callable[[bytes], None]) -> None:
        """Ask for the slot; questions wait until it is free.

        Args:
            ray: the module, joined to a cluster.
            slot: which one.
            run_id: the run, for those who ask what is going on.
            on_printed: called with what workers have printed.
        """
        self.slot, self._ray, self._on_printed = slot, ray, on_printed
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(slot.node_id, soft=False)
        needs: dict[str, Any] = {"resources": {CPU_SLOT: 1}} if slot.device == "cpu" else {"num_gpus": 1}
        self._at = time.monotonic()
        actor = ray.remote(
            num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups={STATUS: 1}, **needs
        )
        name = f"{run_id}: {slot.name} {time.time_ns()}"
        self._actor = (
            actor(Node)
            .options(name=name, scheduling_strategy=affinity)
            .remote(slot.device, run_id, slot.key, LEASE_SECONDS)
        )
        self.described = self._actor.describe.remote()

    def describe(self) -> Description:
        """What the machine is."""
        description: Description = self._get(self.described)
        return description

    def start(self, threads: int) -> list[str]:
        """Start the supervisor; returns what Ray has set for good."""
        unlike: list[str] = self._get(self._actor.start.remote(threads))
        return unlike

    def data_digest(self) -> str:
        """The digest of the dataset that a survey has written there."""
        digest: str = self._get(self._actor.data_digest.remote())
        return digest

    def look(self) -> Observation:
        """What other programs do there."""
        seen: Observation = self._get(self._actor.look.remote())
        return seen

    def say(self, doing: str | None = None, left: str | None = None) -> None:
        """What the machine does, and what is left of the run, for those who ask."""
        self._actor.say.options(concurrency_group=STATUS).remote(doing, left)

    def now(self) -> float:
        """The machine's clock when the current event came there."""
        return self._at

    def run(
        self, job: Job, timeout: float, on_event: Callable[[Event], None] = lambda event: None
    ) -> ExitStatus:
        """Run a job there; raises Lost if the machine is lost meanwhile."""
        stream = self._actor.run.options(num_returns="streaming").remote(job, timeout)
        deadline = time.monotonic() + timeout + SILENT_SECONDS
        ended: ExitStatus | None = None
        while ended is None:
            for sent in self._next(stream, deadline):
                if isinstance(sent, Ended):
                    ended = sent.status
                    if sent.printed:
                        self._on_printed(sent.printed)
                else:
                    self._at, event = sent
                    on_event(event)
        return ended

    def close(self) -> None:
        """Give the slot back; what runs there is killed."""
        with suppress(Exception):  # Ray may be gone
            self._actor.end.options(concurrency_group=STATUS).remote()  # needs no head
            self._ray.kill(self._actor)

    def _next(self, stream: Any, deadline: float) -> Any:
        try:
            ready, _ = self._ray.wait([stream], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Lost(f"{self.slot.name} has not answered for too long")
            return self._ray.get(next(stream))
        except StopIteration:
            raise Lost(f"{self.slot.name} has ended without a result") from None
        except self._ray.exceptions.RayError as error:
            raise self._lost(error) from None

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference, timeout=ANSWER_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> Lost:
        """An error of Ray in one line: what a method raised there, or what happened to the machine."""
        cause = getattr(error, "cause", None) or error
        if isinstance(error, self._ray.exceptions.GetTimeoutError):
            return Lost(f"{self.slot.name} has not answered within {ANSWER_SECONDS:g} s")
        if isinstance(error, self._ray.exceptions.RayActorError):
            return Lost(f"{self.slot.name} is gone: {first_line(str(error))}")
        return Lost(f"{self.slot.name}: {type(cause).__name__}: {first_line(str(cause))}")


def first_line(text: str) -> str:
    """The first line of a message that has a line at all."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "it does not say why")
