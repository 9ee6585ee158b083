"""The job that verifies a whole backend, in steps each of which may end the worker process.

The worker sends an event before a step and one with its outcomes afterwards. So the parent knows which step ended
the process. It starts another worker with all steps that are known, and that one continues from there.
"""

from __future__ import annotations

import faulthandler
import math
from collections.abc import Iterable
from dataclasses import replace
from time import monotonic

import torch

from convbench.registry import UnknownName, Unsupported, discover
from convbench.registry.conformance.report import CASE, SMALLER, Outcome, step_kind
from convbench.registry.conformance.verify import Step, verify
from convbench.suites.measure.devices import available_devices, select
from convbench.suites.processes.protocol import Conformance, ConformJob, Failed, Send, Tried, Trying
from convbench.suites.worker.setup import set_process

IN_A_ROW = 10  # cases of an op and dtype that end their processes; then its others are not tried


def conform(job: ConformJob, send: Send, data: int) -> Conformance | Failed:
    """Verify one backend: an event before and after every step."""
    set_process(job.threads)
    present = available_devices()
    if job.device not in present and f"{job.device}:0" not in present:
        raise UnknownName("device", job.device, present)
    select(torch.device(job.device))
    registry = discover(distributions=job.distributions)
    if registry.interfering:
        return Failed("incorrect", registry.interfering[0].interference)
    backend = registry.backend(job.backend)
    if job.device.partition(":")[0] not in backend.devices:
        raise Unsupported(f"backend {backend.name!r} runs on {', '.join(backend.devices)}")
    reason = backend.unavailable()
    if reason is not None:
        return Failed("unavailable", str(reason))
    claimed = backend.dtypes_on(job.device)
    dtypes = [dtype for dtype in job.dtypes or claimed if dtype in claimed]
    if not dtypes:
        raise Unsupported(f"backend {backend.name!r} takes {', '.join(claimed)} on {job.device}")
    report = verify(
        backend,
        device=job.device,
        dtypes=dtypes if job.dtypes else None,  # then a dtype that nobody knows is the plugin's fault
        generated=job.generated,
        seed=job.seed,
        shrink=True,
        attempt=Attempts(send, job.known, job.step_seconds, job.shrink_seconds),
    )
    return Conformance(report.outcomes, report.accuracy, report.derived)


class Attempts:
    """Takes the steps whose outcomes are not known yet.

    Args:
        send: tells the parent.
        known: the steps that other workers took, in their order.
        step_seconds: after which a step is taken to hang, and its process ended; None: it is not watched.
        shrink_seconds: that smaller cases of an op may take altogether, in all workers.
    """

    def __init__(
        self,
        send: Send,
        known: Iterable[Tried] = (),
        step_seconds: float | None = None,
        shrink_seconds: float = math.inf,
    ) -> None:
        self._send, self._step_seconds, self._shrink_seconds = send, step_seconds, shrink_seconds
        self._known: dict[str, list[Outcome]] = {}
        self._ends: dict[tuple[str, str], int] = {}  # by op and dtype, in a row
        self._shrinking: dict[str, float] = {}  # seconds, by op
        for step in known:
            self._keep(step.key, list(step.outcomes), step.seconds)

    def __call__(self, key: str, ended: Outcome, step: Step) -> list[Outcome]:
        if key in self._known:
            return self._known[key]
        if step_kind(key) == CASE and self._ends.get((ended.op, ended.dtype), 0) >= IN_A_ROW:
            message = f"not tried: {IN_A_ROW} cases of {ended.op} in a row ended their processes"
            return [
                Outcome(ended.op, ended.case, ended.dtype, ended.device, "crashed", message, kind=ended.kind)
            ]
        if step_kind(key) == SMALLER and self._shrinking.get(ended.op, 0.0) >= self._shrink_seconds:
            message = "not tried: there is no time left for smaller cases"
            return [Outcome(ended.op, ended.case, ended.dtype, ended.device, "unsupported", message)]
        self._send(Trying(key, ended))
        began = monotonic()
        if self._step_seconds is not None:
            faulthandler.dump_traceback_later(self._step_seconds, exit=True)  # even if the GIL is held
        try:
            outcomes = step()
        except SystemExit as leaving:
            outcomes = [replace(ended, message=f"it called sys.exit({leaving.code!r})", ended_process=False)]
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds = monotonic() - began
        self._keep(key, outcomes, seconds)
        self._send(Tried(key, tuple(outcomes), seconds))
        return outcomes

    def _keep(self, key: str, outcomes: list[Outcome], seconds: float) -> None:
        self._known[key] = outcomes
        if step_kind(key) == SMALLER:
            self._shrinking[outcomes[0].op] = self._shrinking.get(outcomes[0].op, 0.0) + seconds
        if step_kind(key) == CASE and outcomes[0].state != "unsupported":
            place = outcomes[0].op, outcomes[0].dtype
            self._ends[place] = self._ends.get(place, 0) + 1 if outcomes[0].ended_process else 0
