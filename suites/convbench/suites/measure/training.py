"""The training loop: plain SGD, the clock around steps only, one number read back per epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from convbench.registry.integrity.model_state import OptimizerState
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.audit import Audit, Evaluation
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import Batches
from convbench.suites.measure.devices import run_ahead_limit, synchronize
from convbench.suites.measure.ranks import Ranks, share_of_images

BEAT_SECONDS = 1.0
CHECK_SECONDS = 1.0  # that torch may take to evaluate what was evaluated
AHEAD = 64  # replays that the host may be ahead of the device: a budget is to be noticed in time


@dataclass(frozen=True)
class Progress:
    """The state of a training after an epoch, or where the budget ended one.

    `train_loss` is the mean over the steps of this epoch, in nats; `train_seconds` is without evaluation;
    `evaluated` is on how many images of the other split.
    """

    epochs: float
    steps: int
    images: int
    train_seconds: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    evaluated: int
    within_budget: bool

    @property
    def diverged(self) -> bool:
        """Whether a loss is no longer a number."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.val_loss))


def train(
    model: nn.Module,
    data: Batches,
    validation: Batches,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
    budget_seconds: float = math.inf,
    now: Callable[[], float] = time.perf_counter,
    evaluating: Callable[[], None] = lambda: None,
    beat: Callable[[int, float, float | None], None] = lambda steps, epoch, loss: None,
    amp: Amp | None = None,
    graphed: GraphedStep | None = None,
    audit: Audit | None = None,
    ranks: Ranks | None = None,
    running: Callable[[bool], None] = lambda on: None,
) -> Iterator[Progress]:
    """Train until the epochs or the budget end, whichever is first, and say where it stands after each epoch.

    Every epoch visits all images once in an order drawn from `seed`; the last batch may be smaller. If an
    evaluation at the speed of training would take longer than the budget, `evaluating` is called first, and the
    evaluation ends with the budget too. About once a second, `beat` is called with the steps, the epochs, and
    this epoch's mean loss so far where reading it does not stall the device. With `graphed`, captured steps are
    replayed, with their own learning rate and batch size. While `audit` looks at what a step did, the clock
    stands. `ranks` train together, and share out the evaluations. `running` is told when the clock is started, and
    when it is stopped.
    """
    device, ranks = data.device, ranks or Ranks()
    amp = amp or Amp()
    optimizer = amp.sgd(model, lr)
    kept = OptimizerState(optimizer)
    generator = torch.Generator().manual_seed(seed)
    steps, images, spent, start = 0, 0, 0.0, 0.0
    total_loss = torch.zeros((), device=device) if graphed is None else graphed.total_loss
    next_beat = now() + BEAT_SECONDS
    audited = () if audit is None else audit.of_training(math.ceil(len(data) / batch_size), epochs)

    def resume() -> float:
        nonlocal start
        synchronize(device)
        running(True)
        start = now()
        return start + budget_seconds - spent

    def pause() -> None:
        nonlocal spent
        synchronize(device)
        spent += now() - start
        running(False)

    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=generator).to(device)
        total_loss.zero_()
        done = 0
        model.train()
        if graphed is not None:
            graphed.start(order)
        latest = order[:0]
        limit_lead = run_ahead_limit(device, AHEAD)
        deadline = resume()
        for index in order.split(batch_size):
            watched = steps + done in audited
            if watched and audit is not None:
                pause()
                if done and graphed is None:
                    audit.unannounced(latest)
                audit.before(ranks.mean(float(total_loss)))
                deadline = resume()
            if graphed is None:
                x, y = data.batch(index)
                with amp.autocast():
                    loss = data.objective(model(x), y)
                optimizer.zero_grad()
                amp.backward(loss)
                amp.update(optimizer)
                total_loss += loss.detach()
            else:
                graphed.replay(len(index))
                limit_lead()
            done += 1
            latest = index
            if watched and audit is not None:
                pause()
                audit.after(index, ranks.mean(float(total_loss)))
                deadline = resume()
            moment = now()
            if not ranks.all(moment < deadline):
                break
            if moment >= next_beat:
                next_beat = moment + BEAT_SECONDS
                mean = float(total_loss) / done if device.type == "cpu" else None
                beat(steps + done, epoch + done * batch_size / len(data), mean)
        pause()
        kept.check()
        seen = min(done * batch_size, len(data))
        steps, images = steps + done, images + seen
        limit = math.inf
        if spent * len(validation) > budget_seconds * images:
            limit = budget_seconds
            evaluating()
        within_budget = seen == len(data) and (ranks.all(spent < budget_seconds) or epoch + 1 == epochs)
        last = not within_budget or epoch + 1 == epochs
        found = audited_evaluation(
            audit,
            model,
            share_of_images(validation, ranks),
            batch_size // ranks.world_size,
            limit,
            now,
            amp,
            share=1.0 if last else 1 / epochs,
        )
        found = _of_all(found, ranks)
        progress = Progress(
            epochs=epoch + seen / len(data),
            steps=steps,
            images=images,
            train_seconds=spent,
            train_loss=ranks.mean(float(total_loss)) / done,
            val_loss=found.loss,
            val_accuracy=found.accuracy,
            evaluated=found.images,
            within_budget=within_budget,
        )
        yield progress
        if progress.diverged or not progress.within_budget:
            return


def _of_all(found: Evaluation, ranks: Ranks) -> Evaluation:
    """The evaluation of all images, of which each rank has evaluated a share."""
    if ranks.alone:
        return found
    images, loss, right = ranks.sums(found.images, found.loss * found.images, found.accuracy * found.images)
    return Evaluation(loss / images, right / images, int(images))


def prime(model: nn.Module, data: Batches, batch_size: int, amp: Amp | None = None) -> None:
    """Do one step's forward and backward pass without side effects: no update, no statistics, no random draw.

    This keeps compilation, the choice of kernels and page faults out of the training time.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    devices = [] if data.device.type == "cpu" else [data.device]
    model.train()
    with torch.random.fork_rng(devices=devices, device_type=data.device.type if devices else "cuda"):
        x, y = data.batch(torch.arange(min(batch_size, len(data)), device=data.device))
        with (amp or Amp()).autocast():
            objective = data.objective(model(x), y)
        objective.backward(data.grad_output)
    model.load_state_dict(state)
    model.zero_grad()
    synchronize(data.device)


def evaluate(
    model: nn.Module,
    data: Batches,
    batch_size: int,
    budget_seconds: float = math.inf,
    now: Callable[[], float] = time.perf_counter,
    amp: Amp | None = None,
) -> Evaluation:
    """The mean loss and the accuracy on a split, read back once.

    With a budget, images are taken in an order that is always the same, for a split may be sorted by class, and
    what is not reached in time is left out; at least one batch is evaluated.
    """
    device = data.device
    limited = budget_seconds < math.inf
    order = torch.arange(len(data), device=device)
    if limited:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(device)
    total_loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.float64)
    images = 0
    model.eval()
    deadline = now() + budget_seconds if limited else math.inf
    with torch.no_grad(), (amp or Amp()).autocast():
        for index in order.split(batch_size):
            x, y = data.batch(index)
            loss, right = data.score(model(x), y)
            total_loss += loss
            correct += right
            images += len(index)
            if limited:
                synchronize(device)
                if now() >= deadline:
                    break
    return Evaluation(float(total_loss) / images, float(correct) / images, images)


def audited_evaluation(
    audit: Audit | None,
    model: nn.Module,
    data: Batches,
    batch_size: int,
    budget_seconds: float = math.inf,
    now: Callable[[], float] = time.perf_counter,
    amp: Amp | None = None,
    *,
    share: float = 1.0,
) -> Evaluation:
    """Evaluate, and look at it: no parameter may change, and torch must find the same.

    `share` of all evaluations are taken again by torch, for a second at most.
    """
    if audit is None:
        return evaluate(model, data, batch_size, budget_seconds, now, amp)
    with audit.evaluating():
        found = evaluate(model, data, batch_size, budget_seconds, now, amp)
    if audit.draws(share):
        plain = evaluate(audit.plain(), data, batch_size, CHECK_SECONDS, now, amp)
        audit.check_evaluation(found, plain)
    return found
