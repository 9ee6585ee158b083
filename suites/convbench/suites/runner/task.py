"""Run one task in a worker process: make its job, handle its events, and hand its result to the recorder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convbench.registry.hookspecs import PROJECT
from convbench.results.schema import MEASURED, Row, Status
from convbench.suites.config.suite import Suite
from convbench.suites.processes.probe import PEAKS_SECONDS, Peaks
from convbench.suites.processes.protocol import (
    Beat,
    CombinationJob,
    Dropped,
    EpochEnd,
    Event,
    Failed,
    Measured,
    Note,
    Peak,
    PeaksJob,
    Running,
    Samples,
    Survey,
    Tried,
    Trying,
)
from convbench.suites.processes.supervisor import ExitStatus, JobRunner
from convbench.suites.runner.plausibility import Watch, impossible_rate, wrong_clock, wrong_counts
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.recorder import Recorder, utc_now
from convbench.suites.runner.schedule import Task


@dataclass(frozen=True)
class RunContext:
    """What all tasks of a run share."""

    suite: Suite
    survey: Survey
    peaks: Peaks
    num_classes: int
    supervisor: JobRunner
    recorder: Recorder
    watcher: Watcher

    def obstacle(self, task: Task) -> tuple[Status, str] | None:
        """The status and reason of a task that is known not to run."""
        return task.planned.obstacle or self.recorder.found_wrong(task.combination)

    def run(self, task: Task, timeout: float) -> Row:
        """Run a task, or write down why it cannot run; its worker is killed after `timeout` seconds."""
        self.watcher.start(task)
        obstacle = self.obstacle(task)
        if obstacle is not None:
            row = self.recorder.write(task, Measured(*obstacle))
        else:
            result, started_at = self.measure(task, timeout)
            if changed := ", ".join(self.recorder.store.restore()):
                reason = f"{changed} of the run was changed while its process ran, and put back"
                self.watcher.note(f"{task.label}: {reason}")
                if set(self.distributions(task)) != {PROJECT}:
                    result = Measured("incorrect", reason, result.measures)
            row = self.recorder.write(task, result, started_at)
        self.watcher.finish(task, row)
        return row

    def measure(self, task: Task, timeout: float) -> tuple[Measured, str]:
        """Run a task in a worker process; returns its result, and when it started."""
        run = TaskRun(self, task)
        job = replace(self.job(task), timeout_seconds=timeout)
        exit_status = self.supervisor.run(job, timeout, run.handle_event)
        return run.result(exit_status, timeout), run.started_at

    def leave_out(self, left: Sequence[tuple[Task, str]]) -> None:
        """Write the rows of tasks that the total budget has no time for, and name them."""
        named: dict[str, dict[str, None]] = {}
        for task, reason in left:
            obstacle = self.obstacle(task)
            if obstacle is not None:
                self.recorder.write(task, Measured(*obstacle))
                continue
            self.recorder.write(task, Measured("budget", notes=(reason,)))  # the reason is no error
            named.setdefault(reason, {})[task.combination.label] = None
        for reason, labels in named.items():
            self.watcher.note(f"{', '.join(labels)}: {reason}")

    def distributions(self, task: Task) -> tuple[str, ...]:
        """The distributions whose plugins a task needs."""
        registry, combination = self.recorder.facts.registry, task.combination
        return (
            *registry.backends.distributions(combination.backend),
            *registry.architectures.distributions(combination.architecture),
        )

    def job(self, task: Task) -> CombinationJob:
        """What the worker of a task is told."""
        suite, timing, combination = self.suite, self.suite.timing, task.combination
        if task.share is not None:
            timing = replace(timing, max_seconds=task.share)
        assert timing.threads is not None  # resolved when the run began
        return CombinationJob(
            kind=task.kind,
            round=task.round,
            combination=combination,
            distributions=self.distributions(task),
            recipe=task.planned.recipe,
            images=self.survey.images,
            num_classes=self.num_classes,
            threads=max(1, timing.threads // combination.world_size),
            test_translation_px=suite.test_translation_px,
            fuse=suite.fuse,
            peaks=self.peaks.get(combination.device, {}).get(combination.dtype),
            timing=timing,
            train_seconds=suite.budget.train_seconds if task.share is None else task.share,
            # CUDA reserves far more than it uses; there the device says when memory runs out
            memory_mb=suite.budget.memory_mb if combination.device == "cpu" else None,
        )


@dataclass
class TaskRun:
    """A task while its worker runs: what the worker has sent so far."""

    context: RunContext
    task: Task
    started_at: str = field(default_factory=utc_now)
    began: float = field(default_factory=time.monotonic)
    measures: dict[str, Any] = field(default_factory=dict)
    trying: Trying | None = None
    dropped: bool = False
    watch: Watch = field(init=False)
    claimed_seconds: float = 0.0  # of timed steps or of a training
    images: int = 0  # of a training
    doubt: str | None = None  # what cannot be about what was sent

    def __post_init__(self) -> None:
        self.watch = Watch(now=self.context.supervisor.now)

    def handle_event(self, event: Event) -> None:
        """Show, store or remember what the worker sends. Epochs and samples are stored at once."""
        watcher, recorder = self.context.watcher, self.context.recorder
        match event:
            case Note(text):
                watcher.note(text)
            case Beat():
                watcher.beat(self.task, event)
            case Running(on):
                self.watch.turn(on)
            case EpochEnd():
                watcher.progress(self.task, recorder.keep_epoch(self.task, event))
                self.measures |= {
                    "epochs": event.epoch,
                    "steps": event.steps,
                    "train_seconds": event.train_seconds,
                    "train_loss": event.train_loss,
                    "val_loss": event.val_loss,
                    "val_accuracy": event.val_accuracy,
                }
                self.images, self.claimed_seconds = event.train_images_seen, event.train_seconds
                batch_size = self.task.combination.batch_size
                self.doubt = self.doubt or wrong_counts(event.train_images_seen, event.steps, batch_size)
            case Samples():
                if self.claimed_seconds:
                    self.doubt = "it sent step times twice"
                recorder.keep_samples(self.task, event)
                self.claimed_seconds = sum(event.step_ms) / 1000
                self.measures |= figures(event, self.task.combination.batch_size)
            case Trying():
                self.trying = event
            case Tried():
                self.trying = None
            case Dropped(reason):
                if not self.dropped:
                    watcher.note(f"{self.task.label}: what is no event was dropped ({reason})")
                self.dropped = True

    def result(self, exit_status: ExitStatus, timeout: float) -> Measured:
        """How the task ended, from how its worker ended."""
        self.measures["process_seconds"] = time.monotonic() - self.began
        match exit_status.result:
            case Measured(status, measures=measures) as measured:
                if self.images and self.claimed_seconds:
                    self.measures["images_per_second"] = self.images / self.claimed_seconds
                doubt = self.doubt or self.implausible() if status in MEASURED else None
                if doubt is not None:
                    return Measured("incorrect", f"its figures cannot be: {doubt}", self.measures)
                return replace(
                    measured, measures={**measures, **self.measures}
                )  # what we saw ourselves counts
            case Failed(status, error):
                return Measured(status, error, self.measures)
        if exit_status.code is None:
            error = f"no end after {round(timeout, 1):g} s; its process was killed"
        else:
            error = f"its process {exit_status.description} without a result"
        if self.trying is not None:
            ended = self.trying.ended
            error = f"{ended.case}: {error}" + (f"; {ended.message}" if ended.message else "")
        status = "timeout" if exit_status.code is None else "crashed"
        return Measured(status, error, self.measures)

    def implausible(self) -> str | None:
        """What cannot be about the figures of a worker that has ended well."""
        context, combination, rate = (
            self.context,
            self.task.combination,
            self.measures.get("images_per_second"),
        )
        peaks = context.peaks.get(combination.device, {}).get(combination.dtype)
        verified = context.recorder.verified(combination)
        if not rate:
            return None
        doubt = wrong_clock(self.claimed_seconds, self.watch, gaps=self.task.planned.problem is not None)
        if doubt is None and peaks and verified and verified.step_flops_per_image:
            doubt = impossible_rate(
                rate * verified.step_flops_per_image / 1e9,
                context.recorder.facts.registry.backend(combination.backend),
                combination.device,
                peaks["gflops_per_second"] * self.devices,
                self.peak_now,
            )
        return doubt

    @property
    def devices(self) -> int:
        """On how many devices it computes: ranks share the cores of a machine, and each has a GPU of its own."""
        return 1 if self.task.combination.device == "cpu" else self.task.combination.world_size

    def peak_now(self) -> float | None:
        """The peak of the device in 10^9 FLOP/s; None where it cannot be known now."""
        combination, threads = self.task.combination, self.context.suite.timing.threads
        assert threads is not None  # resolved when the run began
        job = PeaksJob(device=combination.device, dtype=combination.dtype, threads=threads)
        result = self.context.supervisor.run(job, PEAKS_SECONDS).result
        known = isinstance(result, Peak) and not result.busy
        return (
            result.peaks["gflops_per_second"] * self.devices if known and isinstance(result, Peak) else None
        )


def figures(samples: Samples, batch_size: int) -> dict[str, float]:
    """Medians and deciles of the step times of one process, as columns of its row."""
    times = samples.step_ms
    median = statistics.median(times)
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else [median] * 9
    return {
        "steps": len(times),
        "step_ms_median": median,
        "step_ms_p10": deciles[0],
        "step_ms_p90": deciles[8],
        "images_per_second": batch_size / median * 1000,
        **{phase: statistics.median(phase_ms) for phase, phase_ms in samples.phases.items()},
    }
