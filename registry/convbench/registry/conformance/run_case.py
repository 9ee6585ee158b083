"""Runs one case: calls the implementation, computes its gradients, and compares both with the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.aliasing import History, can_refill, same
from convbench.registry.conformance.batch_sampling import (
    restricted_call,
    sample_images,
    sampled,
    scattered,
    unsampled,
)
from convbench.registry.conformance.cases import REPEATING, Case
from convbench.registry.conformance.diagnosis import diagnose
from convbench.registry.conformance.reference import (
    OUTPUT,
    Reference,
    answers_of,
    directions,
    gradient_of,
    reference_answers,
)
from convbench.registry.conformance.tolerances import ELEMENTWISE, error_ratio, rms_error_ratio
from convbench.registry.integrity.model_state import tensors_kept
from convbench.registry.ops.contract import Op
from convbench.registry.ops.dtypes import Arithmetic
from convbench.registry.records import Accuracy

UNDER_NO_GRAD = "output under no_grad"


class Mismatch(Exception):
    """A result that differs from the reference; the text says how."""


def run_case(
    op: Op,
    implementation: Callable[..., Any],
    case: Case,
    arithmetic: Arithmetic,
    device: torch.device,
    seed: int,
    accuracy: Accuracy = ELEMENTWISE,
    *,
    history: History,
    refill: bool = False,
    known: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """The output and gradients of one call by name, and the largest relative error.

    Args:
        op: of the case.
        implementation: what is called.
        case: the call.
        arithmetic: of the tensors.
        device: the torch device.
        seed: of the random data.
        accuracy: what the backend declares of the op.
        history: of the case; this call is added to it.
        refill: put the data into the tensors of the last call, where there is one that `can_refill`.
        known: the answers of a run on the same data, which must come again to the last bit; without them, the
            answers are compared with the reference, of a large batch those of a sample of images.

    Raises:
        Mismatch: an answer is wrong, or an argument was changed.
        IntegrityError: the output of the last call has changed, or this one is written late or an earlier one.
    """
    dtype = arithmetic.tensors
    arguments, pristine = _arguments(op, case, dtype, device, seed, history, refill)
    tensors = {name: arguments[name] for name in pristine}
    needed = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    expected = op.on_meta(arguments)[1].shape  # all that is needed to draw the gradient of an output
    sample = sample_images(op, arguments, seed) if case.order == 1 else None
    drawn = expected if sample is None else torch.Size((len(sample), *expected[1:]))
    grad_output = scattered(sample, case.grad_output(drawn, dtype, device, seed), expected[0])
    pristine_grad_output = grad_output.clone()
    if known is not None:
        truth, right_output = None, sampled(sample, known[OUTPUT])
    else:
        call = restricted_call(sample, {**arguments, **pristine})
        truth = reference_answers(
            op, case, call, sampled(sample, grad_output), accuracy, arithmetic.factor_error
        )
        right_output = truth.answers[OUTPUT]

    before = replace(history)
    with tensors_kept(tensors):
        output = implementation(**arguments)
    _check_form(OUTPUT, output, expected, tensors, dtype, device)
    answers = {OUTPUT: history.add(arguments, seed, output)}
    history.explain(before, op, case, sample, right_output)
    if not needed:
        if output.requires_grad:
            raise Mismatch("the output has a gradient where no argument needs one")
        answers[UNDER_NO_GRAD] = _without_gradient(implementation, arguments, tensors)
        _check_form(UNDER_NO_GRAD, answers[UNDER_NO_GRAD], expected, tensors, dtype, device)
    elif output.requires_grad:
        directed = directions(tensors) if case.order == 2 else {}
        answers = answers_of(output, needed, grad_output.requires_grad_(case.order == 2), directed) | answers
        for name in needed:
            if gradient_of(name) not in answers:
                raise Mismatch(f"no gradient reaches {name}")
    elif output.numel():
        raise Mismatch("the output is cut off from the gradient")
    for name, tensor in tensors.items():
        if not same(tensor.detach(), pristine[name]):
            raise Mismatch(f"{name} was changed in place")
    if not same(grad_output.detach(), pristine_grad_output):
        raise Mismatch("the incoming gradient was changed in place")
    if truth is None:
        for name, given in (known or {}).items():
            if not same(given, answers[name]):
                raise Mismatch(f"{name} differs between two runs on the same data")
        return answers, 0.0
    errors = []
    repeats = {case.layout, case.weight_layout, case.grad_output_layout} & set(REPEATING)
    for name, each in answers.items():
        if sample is not None and name in (OUTPUT, UNDER_NO_GRAD, gradient_of("input")):
            if name == gradient_of("input"):
                _check_zero(name, unsampled(sample, each), truth.tolerance(name, dtype, accuracy))
            each = sampled(sample, each)
        errors.append(_compare(name, each, truth, arithmetic, accuracy, together=not repeats))
    return answers, max(errors)


def call_once(
    op: Op,
    implementation: Callable[..., Any],
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    history: History,
) -> None:
    """Call an implementation and add the call to the history; what its output is, other checks say."""
    arguments, pristine = _arguments(op, case, dtype, device, seed, history, refill=False)
    output = implementation(**arguments)
    owners = [arguments[name].untyped_storage().data_ptr() for name in pristine]
    if isinstance(output, Tensor) and output.untyped_storage().data_ptr() not in owners:
        history.add(arguments, seed, output)


def _arguments(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    history: History,
    refill: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of a call, with gradients as the case needs them, and another copy of its tensors."""
    fresh = case.arguments(dtype, device, seed)
    pristine = {name: fresh[name] for name in op.tensors if isinstance(fresh.get(name), Tensor)}
    if refill and history.arguments and can_refill(case):
        return history.refill(fresh), pristine
    pristine = {name: tensor.clone() for name, tensor in pristine.items()}
    for name in pristine:
        fresh[name].requires_grad_(case.needs is None or name in case.needs)
    return fresh, pristine


def _check_form(
    name: str,
    output: Any,
    shape: torch.Size,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not isinstance(output, Tensor):
        raise Mismatch(f"the {name} is a {type(output).__name__}, not a tensor")
    if output.shape != shape:
        raise Mismatch(f"the {name} has shape {tuple(output.shape)}, not {tuple(shape)}")
    if output.dtype != dtype:
        raise Mismatch(f"the {name} is {output.dtype}, not {dtype}")
    if output.device.type != device.type:
        raise Mismatch(f"the {name} is on {output.device}, not on {device}")
    for argument, tensor in tensors.items():
        owner = tensor.untyped_storage()
        if output.numel() and output.untyped_storage().data_ptr() == owner.data_ptr():
            raise Mismatch(f"the {name} shares the memory of {argument}")


def _without_gradient(
    implementation: Callable[..., Any], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Any:
    """The output under `no_grad`, of arguments that need a gradient otherwise."""
    needing = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    with torch.no_grad():
        output = implementation(**{**arguments, **needing})
    if isinstance(output, Tensor) and output.requires_grad:
        raise Mismatch("the output has a gradient under no_grad")
    return output


def _check_zero(name: str, rest: Tensor, admissible: Tensor) -> None:
    """Images whose outputs have a gradient of zero have one of zero themselves."""
    if rest.numel() and not bool(rest.abs().max() <= admissible.max()):
        raise Mismatch(f"the {name} is {float(rest.abs().max()):.9g} in images whose outputs have none")


def _compare(
    name: str, answer: Tensor, truth: Reference, arithmetic: Arithmetic, accuracy: Accuracy, together: bool
) -> float:
    """The largest error in units of the reference's largest value; raises where one is inadmissible."""
    of, dtype = OUTPUT if name == UNDER_NO_GRAD else name, arithmetic.tensors
    right = truth.answers[of]
    if answer.shape != right.shape:
        raise Mismatch(f"the {name} has shape {tuple(answer.shape)}, not {tuple(right.shape)}")
    if not right.numel():
        return 0.0
    ratio = error_ratio(answer, right, truth.tolerance(of, dtype, accuracy), accuracy)
    worst = int(ratio.argmax())
    if ratio.flatten()[worst] > 1:
        got, wanted = float(answer.flatten()[worst]) + 0.0, float(right.flatten()[worst])  # no -0
        position = [int(index) for index in torch.unravel_index(ratio.argmax(), right.shape)]
        raise Mismatch(
            f"the {name} is {got:.9g} where {wanted:.9g} is right, {float(ratio.flatten()[worst]):.3g} times "
            f"the admissible error, at {position}; {int((ratio > 1).sum())} of "
            f"{right.numel()} elements are wrong{diagnose(of, answer, right, ratio > 1)}"
        )
    joint = rms_error_ratio(answer, right, truth.rms_tolerance(of, dtype, accuracy)) if together else 0.0
    if joint > 1:
        raise Mismatch(
            f"the errors of the {name} are together {joint:.3g} times what rounding in "
            f"{arithmetic.name} explains (root mean square over {right.numel()} elements)"
        )
    difference = (answer.double() - right).abs().nan_to_num(nan=0.0, posinf=0.0).max()
    return float(difference / right.abs().nan_to_num(nan=0.0, posinf=0.0).max().clamp_min(1e-300))
