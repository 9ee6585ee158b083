"""Verify a backend again after it was timed or trained with.

It may compute something else later, or outside of a verification. None of this is timed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convbench.registry import Backend, Unsupported
from convbench.registry.conformance.cases import Case
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.integrity.step_audit import Call, StepAudit
from convbench.registry.known_faults import faults_here
from convbench.registry.routing.dispatch import Routed, use_backend
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import Batches
from convbench.suites.worker.setup import Setup, Verdict

ALTOGETHER = 0.1  # of the norm: how far a compiled step may be off, whose single answers nobody can see
# of the norm: how far two steps may be apart that sum in another order; random numbers are further
REPEATED = 0.01
LEAST_WORK = 0.95  # of that of all images: a network may leave out a layer at random


def recheck(
    setup: Setup,
    seed: int,
    model: nn.Module,
    *,
    images: int | None = None,
    trained: bool,
    graphed: GraphedStep | None = None,
) -> Verdict:
    """Verify once more on new data, drawn with `seed`, and hold real steps of the model against the reference.

    Args:
        model: what was timed or trained.
        images: that it was given then; None for whole batches in each pass.
        trained: whether there were evaluations as well, and smaller batches at the end of each split.
        graphed: the captured steps that were, in mode `graph`.
    """
    splits = (setup.train_data, setup.test_data) if trained else ()
    sizes = filter(None, (len(data) % setup.batch_size for data in splits))
    verified = setup.verify(setup.cases(*sizes), seed, once=True)
    if verified.status != "ok":
        return verified
    _make_finite(setup.model)
    order = _order(setup.train_data, seed)
    evaluated = _order(setup.test_data, seed)[: setup.batch_size] if trained else None
    try:
        if not isinstance(model, Routed):
            _check_compiled(setup, model, order[: setup.batch_size])
        if graphed is not None and setup.train_data.grad_output is None:
            _check_replayed(setup, graphed, order)
        calls, in_a_step, flops = _take_steps(setup, order[: setup.batch_size], evaluated)
        _check_refusals(setup, calls, verified)
        if isinstance(model, Routed):
            _check_service(calls[:in_a_step], model)
            if graphed is None:
                given = model.passes * setup.batch_size if images is None else images
                _check_work(given, flops / setup.batch_size, model)
        setup.check_process()
    except IntegrityError as error:
        return Verdict("incorrect", str(error))
    return Verdict("ok")


def _order(data: Batches, seed: int) -> Tensor:
    """All indices of a split in a random order: any image may be in the batch that is audited."""
    return torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(data.device)


def _take_steps(setup: Setup, index: Tensor, evaluated: Tensor | None) -> tuple[list[Call], int, int]:
    """A training step's passes, and then an evaluation's, with answers checked; nothing is updated.

    Args:
        setup: of the combination.
        index: the images of the step.
        evaluated: those of the evaluation, where there is one.

    Returns:
        all calls, how many of them were the training step's, and the FLOPs of these.
    """
    audit = StepAudit(setup.backend, setup.arithmetic.factor_error)
    model = use_backend(setup.model, audit.backend, fuse=setup.fuse)
    model.train()
    with audit.watching():
        x, y = setup.train_data.batch(index)
        with setup.amp.autocast():
            objective = setup.train_data.objective(model(x), y)
        if objective.requires_grad:
            objective.backward(setup.train_data.grad_output, retain_graph=True)
        audit.check_gradients()
        in_a_step, flops = len(audit.calls), _flops(model)
        if evaluated is not None:
            model.eval()
            with torch.no_grad(), setup.amp.autocast():
                model(setup.test_data.batch(evaluated)[0])
    model.zero_grad()
    return audit.calls, in_a_step, flops


def _make_finite(model: nn.Module) -> None:
    """Give a model that has diverged finite numbers: NaN would hide every difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all():
                parameter.normal_(std=0.05)
        for buffer in model.buffers():
            if not buffer.isfinite().all():
                buffer.fill_(1)


def _check_refusals(setup: Setup, calls: list[Call], verified: Verdict) -> None:
    """What is refused must be the same in verification and at work."""
    for call in calls:
        if not call.served and str(call.case) in verified.passed:
            raise IntegrityError(f"{call.case}: it is served in verification and refused in a training step")
        # what is refused may have been a gradient that the step has no need of
        if call.served and str(call.case) in verified.refused and _refuses(setup, call.case):
            raise IntegrityError(f"{call.case}: it is refused in verification and served in a training step")


def _refuses(setup: Setup, case: Case) -> bool:
    arguments = case.arguments(setup.arithmetic.tensors, setup.device, setup.seed)
    try:
        with torch.no_grad():
            setup.backend.ops[case.op](**arguments)
    except Unsupported:
        return True
    return False


def _check_service(calls: list[Call], routed: Routed) -> None:
    """The share of served calls must be the same in the steps that counted and in the one that was checked."""
    for name, tally in routed.tallies.items():
        steps = [call.served for call in calls if call.case.op == name]
        if tally.calls and steps and tally.served_calls * len(steps) != sum(steps) * tally.calls:
            raise IntegrityError(
                f"{name}: {tally.served_calls} of {tally.calls} calls were served in the steps that counted, and "
                f"{sum(steps)} of {len(steps)} in the one that was checked"
            )


def _check_work(images: int, flops: float, routed: Routed) -> None:
    """The steps that counted must have had the FLOPs of all their images, so many each."""
    found = _flops(routed)
    if found < LEAST_WORK * images * flops:
        raise IntegrityError(
            f"it did the work of {found / flops:.4g} images, and was to do that of {images:,}"
        )


def _flops(routed: Routed) -> int:
    return sum(tally.flops for tally in routed.tallies.values())


def _check_compiled(setup: Setup, model: nn.Module, index: Tensor) -> None:
    """Compiled code has no calls to look at: hold its step as a whole against that of the plain model."""
    if (expected := _plain_step(setup, index)) is None:
        return
    for answer, right in zip(_objective_and_gradients(setup, model, index), expected, strict=True):
        if right.isfinite().all() and not _alike(answer, right, ALTOGETHER):
            raise IntegrityError("a step of the compiled model is another one than that of the plain model")


def _check_replayed(setup: Setup, graphed: GraphedStep, order: Tensor) -> None:
    """A replay runs no Python to look into: hold its update against the gradients of the plain model."""
    if (expected := _plain_step(setup, order[: setup.batch_size])) is None:
        return
    state = {name: value.clone() for name, value in setup.model.state_dict().items()}
    before = [parameter.detach().clone() for parameter in setup.model.parameters()]
    graphed.start(order)
    graphed.replay()
    updates = [
        (old - parameter.detach()).double() / setup.recipe.lr
        for old, parameter in zip(before, setup.model.parameters(), strict=True)
    ]
    setup.model.load_state_dict(state)
    if setup.amp.dtype == torch.float16 and not any(bool(update.any()) for update in updates):
        return  # a gradient overflowed, and the step was left out
    for old, update, right in zip(before, updates, expected[1:], strict=True):
        rounding = torch.finfo(old.dtype).eps * float(old.norm()) / setup.recipe.lr
        off = float((update - right).norm())
        if right.isfinite().all() and not off <= ALTOGETHER * float(right.norm()) + rounding:
            raise IntegrityError("a replayed step is another one than that of the plain model")


def _plain_step(setup: Setup, index: Tensor) -> list[Tensor] | None:
    """Objective and gradients of the plain model; None where it draws random numbers: then none are right."""
    first, second = (_objective_and_gradients(setup, _plain(setup), index) for _ in range(2))
    same = all(_alike(again, once, REPEATED) for again, once in zip(second, first, strict=True))
    return first if same else None


def _plain(setup: Setup) -> nn.Module:
    """The model computed by torch; in another way where torch is known to be wrong on this machine."""
    if not faults_here():
        return setup.model
    return use_backend(setup.model, Backend("torch alone", "leaves everything to torch", load=dict))


def _alike(answer: Tensor, right: Tensor, share: float) -> bool:
    return bool((answer - right).norm() <= share * right.norm())


def _objective_and_gradients(setup: Setup, model: nn.Module, index: Tensor) -> list[Tensor]:
    state = {name: value.clone() for name, value in setup.model.state_dict().items()}
    model.train()
    model.zero_grad()
    x, y = setup.train_data.batch(index)
    with setup.amp.autocast():
        objective = setup.train_data.objective(model(x), y)
    if objective.requires_grad:
        objective.backward(setup.train_data.grad_output)
    parameters = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    answers = [each.detach().double().clone() for each in (objective, *parameters)]
    model.zero_grad()
    setup.model.load_state_dict(state)  # batch norm's statistics
    return answers
