"""Machines of a cluster that are made up, and answer at once: nothing here needs Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from convbench.suites.cluster.blocks import Slot
from convbench.suites.cluster.connection import CPU_SLOT, Lost
from convbench.suites.cluster.preflight import Description, describe
from convbench.suites.machine.load import Observation
from convbench.suites.processes.protocol import (
    Availability,
    AvailabilityJob,
    CombinationJob,
    Done,
    EpochEnd,
    Event,
    ImageFile,
    Job,
    Measured,
    Peak,
    PeaksJob,
    Result,
    Samples,
    Survey,
    SurveyJob,
)
from convbench.suites.processes.supervisor import ExitStatus
from convbench.suites.runner.progress import Watcher

HERE = describe()
IMAGES = ImageFile(
    "fashion-mnist-sample", {"train_images": (1000, 1, 28, 28), "test_images": (200, 1, 28, 28)}
)


class Machine:
    """A made-up machine; `before` is called before each job, and may raise Lost."""

    def __init__(
        self,
        name: str,
        description: Description = HERE,
        *,
        digest: str = "same",
        unavailable: tuple[str, ...] = (),
        model: str = "a processor",
        gpus: int = 0,
        step_ms: float = 1.0,
        before: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.name, self.description, self.digest = name, description, digest
        self.unavailable, self.model, self.step_ms, self.before = unavailable, model, step_ms, before
        self.gpus, self.alive, self.did = gpus, True, list[Job]()

    def lose(self) -> None:
        self.alive = False
        raise Lost(f"{self.name} is gone")

    def do(self, job: Job, on_event: Callable[[Event], None]) -> Result:
        self.before(job)
        if not self.alive:
            self.lose()
        self.did.append(job)
        if isinstance(job, SurveyJob):
            devices = {"cpu": self.model, **({"cuda:0": "a GPU"} if self.gpus else {})}
            return Survey({"machine_id": f"m{self.name}"}, "2", devices, IMAGES)
        if isinstance(job, AvailabilityJob):
            for backend in job.backends:
                on_event(Availability(backend, "no compiler" if backend in self.unavailable else None))
        if isinstance(job, PeaksJob):
            return Peak({"gflops_per_second": 1e9, "gb_per_second": 1.0}, busy=False)
        if isinstance(job, CombinationJob):
            if job.kind == "time":
                on_event(Samples((self.step_ms,) * 3, {}))
            if job.kind == "train":
                on_event(EpochEnd(1.0, 10, 10 * job.combination.batch_size, 0.1, 1.0, 1.0, 0.5))
            return Measured("ok")
        return Done()


class Ray:
    """What the grid asks of Ray."""

    def __init__(self, *machines: Machine) -> None:
        self.machines = list(machines)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": machine.name,
                "NodeManagerHostname": machine.name,
                "Alive": machine.alive,
                "Resources": {CPU_SLOT: 1, "GPU": machine.gpus},
            }
            for machine in self.machines
        ]

    def wait(self, references: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return references, []

    def node(self, ray: Ray, slot: Slot, run_id: str, on_printed: Any) -> Node:
        (machine,) = (each for each in self.machines if each.name == slot.node_id)
        return Node(machine, slot)


class Node:
    """Stands for a `RemoteNode`."""

    def __init__(self, machine: Machine, slot: Slot) -> None:
        self.machine, self.slot, self.described = machine, slot, object()

    def describe(self) -> Description:
        return self.machine.description

    def start(self, threads: int) -> list[str]:
        return []

    def data_digest(self) -> str:
        return self.machine.digest

    def look(self) -> Observation:
        return Observation(0.0, None, None, None, None)

    def say(self, doing: str | None = None, left: str | None = None) -> None:
        pass

    def now(self) -> float:
        return time.monotonic()

    def run(
        self, job: Job, timeout: float, on_event: Callable[[Event], None] = lambda event: None
    ) -> ExitStatus:
        return ExitStatus(0, self.machine.do(job, on_event))

    def close(self) -> None:
        pass


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
