"""Verify whole backends, each in a worker process of its own, or in several where it crashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from convbench.registry import Registry, UnknownName, UsageError
from convbench.registry.conformance.report import (
    CASE,
    EXPLAINED,
    GENERATED,
    SMALLER,
    SPARED,
    TORCHS,
    Outcome,
    Report,
)
from convbench.registry.ops.dtypes import DTYPES
from convbench.suites.machine.resources import free_memory_mb, usable_cores
from convbench.suites.processes.protocol import (
    Conformance,
    ConformJob,
    Event,
    Failed,
    Tried,
    Trying,
)
from convbench.suites.processes.supervisor import Supervisor

STEP_SECONDS = 240.0  # a step, such as one case on one backend, that takes longer is taken to hang
SHRINK_SECONDS = 20.0  # for the smaller cases of one op, which may each cost a worker


@dataclass(frozen=True)
class Verification:
    """What came of one backend: a row's status, a line about it, and all outcomes.

    Where the backend could not be verified to its end, the outcomes are those before.
    """

    backend: str
    status: str
    line: str
    report: Report

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """All that was tried."""
        return self.report.outcomes

    @property
    def first_failures(self) -> list[Outcome]:
        """Of each op, the first failure of each kind for which there is Python that shows it."""
        first: dict[tuple[Any, ...], Outcome] = {}
        for outcome in self.report.failures:
            if outcome.reproduction:
                kind = (outcome.op, outcome.kind, outcome.state, outcome.ended_process, outcome.known_fault)
                first.setdefault(kind, outcome)
        return list(first.values())


def verify_backends(
    registry: Registry,
    patterns: Iterable[str],
    *,
    device: str = "cpu",
    dtypes: Sequence[str] | None = None,
    timeout: float = 600.0,
    generated: int = GENERATED,
    seed: int = 0,
    threads: int | None = None,
) -> list[Verification]:
    """Verify every registered backend that matches, on the curated cases and so many generated ones of each op.

    A backend has `timeout` seconds; torch starts as many threads as there are cores, unless it is told.

    Raises:
        UnknownName: a pattern that matches nothing, or no such device or dtype.
    """
    names = registry.backends.matching(patterns)
    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
    threads = threads or usable_cores()
    job = ConformJob(
        backend="",
        device=device,
        dtypes=tuple(dtypes) if dtypes else None,
        generated=generated,
        seed=seed,
        step_seconds=STEP_SECONDS,
        shrink_seconds=SHRINK_SECONDS,
        threads=threads,
        memory_mb=free_memory_mb() if device == "cpu" else None,
    )
    jobs = [replace(job, backend=name, distributions=registry.backends.distributions(name)) for name in names]
    with TemporaryDirectory() as scratch, Supervisor(Path(scratch) / "log", threads) as supervisor:
        return [_verify(supervisor, each, timeout) for each in jobs]


def _verify(supervisor: Supervisor, job: ConformJob, timeout: float) -> Verification:
    """Verify one backend, in as many workers as its crashes take."""
    name, deadline = job.backend, monotonic() + timeout
    known: list[Tried] = []
    while True:
        steps = _Steps(known)
        left = max(0.0, deadline - monotonic())
        exit_status = supervisor.run(replace(job, known=tuple(known)), left, steps.handle_event)
        match exit_status.result:
            case Conformance(outcomes, accuracy, derived):
                report = Report(name, outcomes, accuracy, derived)
                status = status_of(report)
                return Verification(name, status, f"{name}: {status}, {summary(report)}", report)
            case Failed(status, error):
                if exit_status.result.usage:
                    raise UsageError(error)
                return Verification(
                    name, status, f"{name}: {status}, {error}", Report(name, outcomes_of(known))
                )
        trying = steps.trying
        if trying is not None:
            expected = f"; {trying.ended.message}" if trying.ended.message else ""
            message = f"its process {steps.hung or exit_status.description}{expected}"
            known.append(Tried(trying.key, (replace(trying.ended, message=message),), steps.waited))
        if exit_status.code is None or trying is None:
            status = "timeout" if exit_status.code is None else "crashed"
            line = f"{name}: {status}, {exit_status.description}"
            if trying is not None:
                line = f"{name}: {status}, {timeout:g} s were up during {trying.ended.case}"
            return Verification(name, status, line, Report(name, outcomes_of(known)))


def outcomes_of(known: Iterable[Tried]) -> tuple[Outcome, ...]:
    """The outcomes of a verification that was cut off, without what was tried to judge or shrink others."""
    found: dict[str, tuple[Outcome, ...]] = {}
    for step in known:
        kind, _, about = step.key.partition(" ")
        if kind == EXPLAINED:
            found[f"{CASE} {about}"] = step.outcomes
        elif kind not in (SMALLER, SPARED, TORCHS):
            found[step.key] = step.outcomes
    return tuple(outcome for outcomes in found.values() for outcome in outcomes)


@dataclass
class _Steps:
    """The steps that one worker takes; those that are over are added to `known`."""

    known: list[Tried]
    trying: Trying | None = None
    since: float = 0.0

    @property
    def waited(self) -> float:
        """Seconds since it began to take its last step."""
        return monotonic() - self.since

    @property
    def hung(self) -> str:
        """Why it was ended, where the step it was taking took too long."""
        return f"gave no answer within {STEP_SECONDS:g} s" if self.waited >= STEP_SECONDS else ""

    def handle_event(self, event: Event) -> None:
        """Keep what a step came to, and which one is being taken."""
        match event:
            case Trying():
                self.trying, self.since = event, monotonic()
            case Tried():
                self.trying = None
                self.known.append(event)


def status_of(report: Report) -> str:
    """The status of a row for a report: what no known fault explains decides."""
    states = {outcome.state for outcome in report.unexplained}
    if "failed" in states:
        return "incorrect"
    if "crashed" in states:
        ended = any(outcome.ended_process for outcome in report.unexplained)
        return "crashed" if ended else "error"
    return "ok" if report.passed else "unsupported"


def summary(report: Report) -> str:
    """What was found, in a line: counts, error, compilation, and what is derived or declared."""
    counts = {
        "passed": report.count("passed"),
        "failed": sum(outcome.state == "failed" for outcome in report.unexplained),
        "crashed": sum(outcome.state == "crashed" for outcome in report.unexplained),
        "unsupported": report.count("unsupported"),
    }
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    parts += [f"{count} by a {fault}" for fault, count in report.known_faults.items()]
    if counts["passed"]:
        largest: dict[str, float] = {}
        for each in report.outcomes:
            if each.state == "passed":
                largest[each.dtype] = max(each.error, largest.get(each.dtype, 0.0))
        named = (f"{error:.1e}" + f" in {dtype}" * (len(largest) > 1) for dtype, error in largest.items())
        parts.append(f"largest error {', '.join(named)}")
    if report.compiles == "passed":
        parts.append("compiles")
    elif report.compiles == "unsupported":
        parts.append("says that it does not compile")
    elif report.compiles:
        parts.append("does not compile")
    if report.derived:
        parts.append(f"derived backward of {', '.join(report.derived)}")
    parts += [f"{op} declared {accuracy}" for op, accuracy in report.accuracy.items()]
    return ", ".join(parts)
