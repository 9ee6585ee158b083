"""What a worker does with one combination: verify it, time it, train it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from convbench.registry.records import choices_of
from convbench.registry.routing.dispatch import use_backend
from convbench.results.schema import Combination
from convbench.suites.machine.load import allowed_cpus, drifts, since, snapshot
from convbench.suites.measure.devices import peak_memory_mb
from convbench.suites.measure.op_counter import count_ops
from convbench.suites.measure.roofline import Roof
from convbench.suites.measure.steps import time_steps
from convbench.suites.measure.training import Progress, evaluate, prime, train
from convbench.suites.worker.coverage import claims, shares
from convbench.suites.worker.recheck import recheck
from convbench.suites.worker.setup import Job, Setup
from convbench.suites.worker.verification_steps import Attempts

Send = Callable[[dict[str, Any]], None]
_now = time.perf_counter  # the clock itself, whatever a plugin puts in its place


def verify_combination(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Hold the backend against the reference on every op call of this model, at this batch and dtype."""
    setup = Setup(job, data)
    model, cases = setup.model, setup.cases()
    outcome = setup.verify(cases, seed=setup.seed, attempt=Attempts(send))
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
    if job.get("peaks"):
        measures["roofline_step_ms"] = 1000 * Roof(**job["peaks"]).seconds(counts.step)
    if outcome["status"] != "ok":  # the model would only stumble over the wrong answer
        return {**outcome, "measures": measures | setup.conditions()}
    routed = use_backend(model, setup.backend, fuse=setup.fuse)
    with torch.no_grad(), setup.amp.autocast():
        routed(setup.sample)
    measures |= {**shares(routed), **claims(setup.backend), "max_error": outcome["max_error"]}
    measures["chosen"] = choices_of(setup.backend)
    notes = ["no op of the contract in this network"] if not cases else []
    notes += [f"left to torch: {reason}" for reason in routed.refusals]
    notes += [f"torch computes {workaround}" for workaround in routed.workarounds]
    return {"status": "ok", "measures": measures | setup.conditions(), "notes": notes}


def time_combination(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Time training steps, then verify once more on new data."""
    began = _now()
    timing = job["timing"]
    setup = Setup(job, data)
    model = setup.runnable()
    graphed = setup.graphed_step(model)
    ready = _now() - began
    steps = time_steps(
        model,
        setup.train_data,
        lr=setup.recipe.lr,
        batch_size=setup.batch_size,
        seed=setup.seed,
        warmup_steps=timing["warmup_steps"],
        steps=timing["steps"],
        max_seconds=timing["max_seconds"],
        max_steps=timing["max_steps"],
        precision=timing["precision"],
        cold_steps=timing["cold_steps"],
        amp=setup.amp,
        graphed=graphed,
        beat=lambda taken: send({"event": "beat", "steps": taken, "epoch": None, "loss": None}),
    )
    peak = peak_memory_mb(setup.device)
    served = shares(model) | {"chosen": choices_of(setup.backend)}  # in these very steps
    again = recheck(setup, setup.seed + 1000 * (1 + job["round"]), model, trained=False, graphed=graphed)
    if again["status"] != "ok":
        return {**again, "error": f"wrong after timing: {again['error']}"}
    send({"event": "samples", "step_ms": steps.step_ms, **steps.phases})
    taken = len(steps.step_ms)
    notes = []
    if taken < timing["steps"]:
        notes.append(f"timed {taken} of {timing['steps']} steps within {timing['max_seconds']:g} s")
    flags = steps.observed.flags(len(allowed_cpus())) + ["drifting"] * drifts(steps.step_ms)
    measures = {
        "steps": taken,
        "setup_seconds": ready + steps.setup_seconds,
        "compile_seconds": steps.compile_seconds,
        "host_ms": steps.host_ms,
        "cold_step_ms": median(steps.cold_ms) if steps.cold_ms else None,
        "peak_memory_mb": peak,
        **served,
        **steps.observed.as_measures(),
        "flags": " ".join(flags) or None,
    }
    return {"status": "ok", "measures": measures | setup.conditions(), "notes": notes}


def train_combination(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Train until the epochs or the budget end; an event for every epoch."""
    began = _now()
    setup = Setup(job, data)
    model = setup.runnable()
    graphed = setup.graphed_step(model)
    if graphed is None:
        prime(model, setup.train_data, setup.batch_size, setup.amp)
    else:
        graphed.capture(*filter(None, (setup.batch_size, len(setup.train_data) % setup.batch_size)))
    setup_seconds = _now() - began
    before = snapshot(str(setup.device))
    last: Progress | None = None
    best = 0.0
    budget = job["budget"]["train_seconds"]
    label = Combination(**job["combination"]).label
    for progress in train(
        model,
        setup.train_data,
        setup.test_data,
        lr=setup.recipe.lr,
        epochs=setup.recipe.epochs,
        batch_size=setup.batch_size,
        seed=setup.seed,
        budget_seconds=budget,
        evaluating=lambda: send(
            {"event": "note", "text": f"train {label}: evaluating, for at most {budget:g} s"}
        ),
        beat=lambda steps, epoch, loss: send(
            {"event": "beat", "steps": steps, "epoch": epoch, "loss": _finite(loss)}
        ),
        amp=setup.amp,
        graphed=graphed,
    ):
        last, best = progress, max(best, progress.val_accuracy)  # NaN is never the larger
        send(
            {
                "event": "epoch",
                "epoch": progress.epochs,
                "steps": progress.steps,
                "train_images_seen": progress.images,
                "train_seconds": progress.train_seconds,
                "train_loss": progress.train_loss,
                "val_loss": progress.val_loss,
                "val_accuracy": _accuracy(progress.val_accuracy),
            }
        )
    assert last is not None  # at least one epoch
    observed = since(before, str(setup.device))
    measures = {
        "epochs": last.epochs,
        "steps": last.steps,
        "train_seconds": last.train_seconds,
        "images_per_second": last.images / last.train_seconds,
        "setup_seconds": setup_seconds,
        "train_loss": last.train_loss,
        "val_loss": last.val_loss,
        "val_accuracy": _accuracy(last.val_accuracy),
        "best_val_accuracy": best if _accuracy(last.val_accuracy) is not None else None,
        "peak_memory_mb": peak_memory_mb(setup.device),
        **observed.as_measures(),
        "flags": " ".join(observed.flags(len(allowed_cpus()))) or None,
        **setup.conditions(),
        **shares(model),
        "chosen": choices_of(setup.backend),
    }
    notes = _left_out("evaluated on", last.evaluated, len(setup.test_data))
    if setup.translated_data is not None:
        shifted = evaluate(
            model, setup.translated_data, setup.batch_size, budget if notes else math.inf, amp=setup.amp
        )
        measures["shifted_val_accuracy"] = shifted.accuracy
        notes += _left_out("shifted:", shifted.images, len(setup.translated_data))
    again = recheck(setup, setup.seed + 999, model, trained=True, graphed=graphed)
    if again["status"] != "ok":
        return {**again, "error": f"wrong after training: {again['error']}", "measures": setup.conditions()}
    if last.diverged:
        error = f"the loss is not a number after {last.steps} steps"
        return {"status": "diverged", "error": error, "measures": measures, "notes": notes}
    if last.within_budget:
        return {"status": "ok", "measures": measures, "notes": notes}
    note = f"{last.epochs:.3g} of {setup.recipe.epochs} epochs within its budget of {budget:g} s"
    return {"status": "budget", "measures": measures, "notes": [note, *notes]}


def _left_out(what: str, images: int, of: int) -> list[str]:
    """A note, where an evaluation was not of all images."""
    return [f"{what} {images:,} of {of:,} images"] if images < of else []


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _accuracy(value: float) -> float | None:
    """None where there is no such thing: the accuracy of a problem, whose answers are not classes."""
    return None if math.isnan(value) else value
