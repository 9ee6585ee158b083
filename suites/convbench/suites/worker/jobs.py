"""The jobs on one combination: verify it, time it, train it."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

import torch
from torch import nn

from convbench.registry import Backend
from convbench.registry.authoring.derived_backward import backward_is_derived
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.contract import OPS
from convbench.registry.records import choices_of
from convbench.registry.routing.dispatch import Routed, use_backend
from convbench.suites.machine.load import CpuUse, allowed_cpus, drifts, since, snapshot
from convbench.suites.measure.op_counter import count_ops
from convbench.suites.measure.ranks import Ranks, trained_images
from convbench.suites.measure.roofline import Roof
from convbench.suites.measure.steps import Steps, time_steps
from convbench.suites.measure.training import Progress, audited_evaluation, prime, train
from convbench.suites.processes.protocol import (
    Beat,
    CombinationJob,
    EpochEnd,
    Measured,
    Note,
    Running,
    Samples,
    Send,
)
from convbench.suites.worker.conform import Attempts
from convbench.suites.worker.recheck import recheck
from convbench.suites.worker.setup import Setup

MARKING_MS = 0.05  # more than it takes to begin and to end a step
SPARE_CPUS = 0.5  # for threads that compute nothing
HELPERS_SECONDS = 0.1  # likewise, for other processes
DOING = {"verify": "verifying", "time": "timing", "train": "training"}
_now = time.perf_counter  # bound here, so that a plugin cannot replace it


def measure_combination(job: CombinationJob, send: Send, data: int, ranks: Ranks) -> Measured:
    """Verify, time or train a combination, the latter two together with other ranks where there are some."""
    work = {"verify": verify_combination, "time": time_combination, "train": train_combination}
    try:
        return work[job.kind](job, send, data, ranks)
    except IntegrityError as error:  # of an audit in the midst of it
        return Measured("incorrect", f"wrong while {DOING[job.kind]}: {error}")


def verify_combination(job: CombinationJob, send: Send, data: int, ranks: Ranks) -> Measured:
    """Hold the backend against the reference on every op call of this model, at this batch and dtype.

    Where several processes train together, one alone does this, on a rank's share of the batch.
    """
    setup = Setup(job, data, ranks)
    model, cases = setup.model, setup.cases()
    verdict = setup.verify(cases, seed=job.secret, attempt=Attempts(send))
    with setup.amp.autocast():
        counts = count_ops(model, setup.sample)
    images = len(setup.sample)
    measures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops_per_image": counts.forward_flops / images,
        "step_flops_per_image": counts.step_flops / images,
        "step_bytes_per_image": counts.step_bytes / images,
        "arithmetic_intensity": counts.step_flops / counts.step_bytes if counts.step_bytes else None,
    }
    if job.peaks:
        sharing = job.combination.world_size if setup.device.type == "cpu" else 1  # the machine's peaks
        measures["roofline_step_ms"] = 1000 * Roof(**job.peaks).seconds(counts.step) * sharing
    if verdict.status != "ok":  # a model with wrong results would only raise further errors
        return Measured(verdict.status, verdict.error, measures | setup.conditions())
    routed = use_backend(model, setup.backend, fuse=setup.fuse)
    with torch.no_grad(), setup.amp.autocast():
        routed(setup.sample)
    measures |= {**shares(routed), **claims(setup.backend), "max_error": verdict.max_error}
    measures["dispatch"] = choices_of(setup.backend)
    notes = ["no op of the contract in this network"] if not cases else []
    notes += [f"left to torch: {reason}" for reason in routed.refusals]
    notes += [f"torch computes {workaround}" for workaround in routed.workarounds]
    return Measured("ok", None, measures | setup.conditions(), tuple(notes))


def time_combination(job: CombinationJob, send: Send, data: int, ranks: Ranks) -> Measured:
    """Time training steps, then verify once more on new data."""
    began = _now()
    setup, timing = Setup(job, data, ranks), job.timing
    audit = setup.audit(job.secret)
    model = setup.runnable(audit.backend)
    graphed = setup.graphed_step(model)
    trained, batches = setup.together(model)
    ready = _now() - began
    use = CpuUse(lambda on: send(Running(on)))
    steps = time_steps(
        trained,
        batches,
        timing,
        lr=setup.recipe.lr,
        batch_size=job.combination.batch_size,
        seed=setup.seed,
        amp=setup.amp,
        graphed=graphed,
        audit=audit,
        ranks=ranks,
        beat=lambda taken: send(Beat(taken)),
        running=use.turn,
    )
    check_marks(setup, steps)
    check_cpus(setup, job.threads, use)
    peak = audit.peak_memory_mb
    served = shares(model) | {"dispatch": choices_of(setup.backend)}  # in these very steps
    again = recheck(setup, job.secret, model, trained=False, graphed=graphed)
    if again.status != "ok":
        return Measured(again.status, f"wrong after timing: {again.error}")
    send(Samples(tuple(steps.step_ms), {name: tuple(times) for name, times in steps.phases.items()}))
    taken = len(steps.step_ms)
    notes = []
    if taken < timing.steps:
        notes.append(f"timed {taken} of {timing.steps} steps within {timing.max_seconds:.3g} s")
    flags = steps.observed.flags(len(allowed_cpus())) + ["drifting"] * drifts(steps.step_ms)
    measures = {
        "setup_seconds": ready + steps.setup_seconds,
        "compile_seconds": steps.compile_seconds,
        "host_ms": steps.host_ms,
        "cold_step_ms": median(steps.cold_ms) if steps.cold_ms else None,
        "peak_memory_mb": peak,
        **served,
        **vars(steps.observed),
        "flags": " ".join(flags) or None,
    }
    return Measured("ok", None, measures | setup.conditions(), tuple(notes))


def train_combination(job: CombinationJob, send: Send, data: int, ranks: Ranks) -> Measured:
    """Train until the epochs or the budget end; an event for every epoch."""
    began = _now()
    setup, batch_size = Setup(job, data, ranks), job.combination.batch_size
    audit = setup.audit(job.secret)
    model = setup.runnable(audit.backend)
    graphed = setup.graphed_step(model)
    trained, batches = setup.together(model)
    if graphed is None:
        prime(trained, batches, batch_size, setup.amp)
    else:
        graphed.capture(*filter(None, (setup.batch_size, len(setup.train_data) % setup.batch_size)))
    setup_seconds = _now() - began
    use = CpuUse(lambda on: send(Running(on)))
    before = snapshot(str(setup.device))
    last: Progress | None = None
    best, images = 0.0, 0
    budget = job.train_seconds
    for progress in train(
        trained,
        batches,
        setup.test_data,
        lr=setup.recipe.lr,
        epochs=setup.recipe.epochs,
        batch_size=batch_size,
        seed=setup.seed,
        budget_seconds=budget,
        evaluating=lambda: send(Note(f"train {job.combination.label}: evaluating, for at most {budget:g} s")),
        beat=lambda steps, epoch, loss: send(Beat(steps, epoch, _finite(loss))),
        amp=setup.amp,
        graphed=graphed,
        audit=audit,
        ranks=ranks,
        running=use.turn,
    ):
        images += trained_images(progress.images - (last.images if last else 0), batch_size, ranks)
        images += progress.evaluated // ranks.world_size
        last, best = progress, max(best, progress.val_accuracy)  # NaN is never the larger
        send(
            EpochEnd(
                epoch=progress.epochs,
                steps=progress.steps,
                train_images_seen=progress.images,
                train_seconds=progress.train_seconds,
                train_loss=progress.train_loss,
                val_loss=progress.val_loss,
                val_accuracy=_accuracy(progress.val_accuracy),
            )
        )
    assert last is not None  # at least one epoch
    check_cpus(setup, job.threads, use)
    observed = since(before, str(setup.device))
    measures: dict[str, Any] = {
        "setup_seconds": setup_seconds,
        "best_val_accuracy": best if _accuracy(last.val_accuracy) is not None else None,
        "peak_memory_mb": audit.peak_memory_mb,
        **vars(observed),
        "flags": " ".join(observed.flags(len(allowed_cpus()))) or None,
        **setup.conditions(),
        **shares(model),
        "dispatch": choices_of(setup.backend),
    }
    notes = _left_out("evaluated on", last.evaluated, len(setup.test_data))
    if setup.translated_data is not None:
        limit = budget if notes else math.inf
        shifted = audited_evaluation(
            audit, model, setup.translated_data, setup.batch_size, limit, amp=setup.amp
        )
        measures["shifted_val_accuracy"] = shifted.accuracy
        images += shifted.images
        notes += _left_out("shifted:", shifted.images, len(setup.translated_data))
    again = recheck(setup, job.secret, model, images=images, trained=True, graphed=graphed)
    if again.status != "ok":
        return Measured(again.status, f"wrong after training: {again.error}", setup.conditions())
    if last.diverged:
        error = f"the loss is not a number after {last.steps} steps"
        return Measured("diverged", error, measures, tuple(notes))
    if last.within_budget:
        return Measured("ok", None, measures, tuple(notes))
    note = f"{last.epochs:.3g} of {setup.recipe.epochs} epochs within its budget of {budget:g} s"
    return Measured("budget", None, measures, (note, *notes))


def _left_out(what: str, images: int, of: int) -> list[str]:
    """A note, where an evaluation was not of all images."""
    return [f"{what} {images:,} of {of:,} images"] if images < of else []


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _accuracy(value: float) -> float | None:
    """None for a problem without classes, which has no accuracy."""
    return None if math.isnan(value) else value


def check_marks(setup: Setup, steps: Steps) -> None:
    """Raise IntegrityError where steps for CPUs take longer than their marks say: they work after the last one."""
    step_ms = median(steps.step_ms)
    if setup.device.type == "cpu" and steps.called_ms > 1.1 * step_ms + MARKING_MS:
        raise IntegrityError(
            f"a step took {step_ms:.3g} ms by its own marks, and {steps.called_ms:.3g} ms by the clock around it"
        )


def check_cpus(setup: Setup, threads: int, use: CpuUse) -> None:
    """Raise IntegrityError where a backend for CPUs computes on more threads than it was given, or elsewhere."""
    if setup.device.type != "cpu":
        return
    if use.cpus > threads + SPARE_CPUS:
        raise IntegrityError(f"it kept {use.cpus:.2g} CPUs busy, and was given {threads}")
    helpers = use.helpers
    if helpers > SPARE_CPUS * use.own + HELPERS_SECONDS and setup.mode != "compile":  # compilers start some
        raise IntegrityError(
            f"processes that it has started computed for {helpers:.2g} s while its own did for {use.own:.2g} s"
        )


def claims(backend: Backend) -> dict[str, Any]:
    """Which ops the backend implements, and which of their gradients were derived from the forward."""
    derived = [name for name, op in backend.ops.items() if backward_is_derived(op)]
    return {
        "supported_ops": ", ".join(name for name in OPS if name in backend.ops),
        "derived_backward": ", ".join(derived) or None,
    }


def shares(model: nn.Module) -> dict[str, Any]:
    """What the backend served in every pass since counting began; nothing for a model that is not counted.

    Calls are those of one pass. Where passes were not alike, because a backend refused what it had taken
    before, `served` has the calls of all of them, and `served_calls` the mean, rounded down.
    """
    if not isinstance(model, Routed) or not model.passes:
        return {}
    passes = model.passes
    tallies = {
        name: (tally.served_calls, tally.calls) for name, tally in model.tallies.items() if tally.calls
    }
    if all(count % passes == 0 for counts in tallies.values() for count in counts):
        tallies = {name: (served // passes, calls // passes) for name, (served, calls) in tallies.items()}
    return {
        "served_calls": model.served_calls // passes,
        "served_flops_fraction": model.served_flops_fraction,
        "served": ", ".join(f"{name} {served}/{calls}" for name, (served, calls) in tallies.items()),
        "served_flops": model.served_flops,
    }
