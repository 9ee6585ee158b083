"""Runs one case: calls the implementation, computes its gradients, and compares both with the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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
from convbench.registry.conformance.diagnosis import Suspects, backward_fault, diagnose
from convbench.registry.conformance.reference.answers import (
    ANY_DATA,
    OUTPUT,
    RANDOM_DATA,
    Reference,
    answers_of,
    directions,
    gradient_of,
)
from convbench.registry.conformance.reference.call import reference_answers
from convbench.registry.conformance.tolerances import ELEMENTWISE, error_ratio, rms_error_ratio
from convbench.registry.integrity.model_state import tensors_kept
from convbench.registry.ops.contract import Op
from convbench.registry.ops.dtypes import Arithmetic
from convbench.registry.records import Accuracy

UNDER_NO_GRAD = "output under no_grad"
NOT_DETERMINISTIC = "two runs on the same data differ: sum in a fixed order, or declare deterministic=False"


class Mismatch(Exception):
    """A result that differs from the reference; the text says how, and `cause` why and what to do."""

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause


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
    few: bool = False,
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
        few: put only a few of the numbers there, and keep the others.
        known: the answers of a run on the same data, which must come again to the last bit; without them, the
            answers are compared with the reference, of a large batch those of a sample of images.

    Raises:
        Mismatch: an answer is wrong, or an argument was changed.
        IntegrityError: the output of the last call has changed, or this one is written late or an earlier one.
    """
    dtype = arithmetic.tensors
    arguments, pristine = _arguments(op, case, dtype, device, seed, history, refill, few)
    tensors = {name: arguments[name] for name in pristine}
    needed = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    expected = op.on_meta(arguments)[1].shape  # all that is needed to draw the gradient of an output
    sample = sample_images(op, arguments, seed) if case.order == 1 else None
    drawn = expected if sample is None else torch.Size((len(sample), *expected[1:]))
    grad_output = scattered(sample, case.grad_output(drawn, dtype, device, seed), expected[0])
    pristine_grad_output = grad_output.clone()
    call = restricted_call(sample, {**arguments, **pristine})
    suspects = Suspects(op, call, sampled(sample, pristine_grad_output))
    repeats = {case.layout, case.weight_layout, case.grad_output_layout} & set(REPEATING)
    if known is not None:
        truth, right_output = None, sampled(sample, known[OUTPUT])
    else:
        directed = directions({name: call[name] for name in tensors}) if case.order == 2 else {}
        # what repeats errs alike, and what an activation passes on does not cancel
        sizes = ANY_DATA if repeats and op.base is not None else RANDOM_DATA
        truth = reference_answers(
            op, call, suspects.grad_output, accuracy, arithmetic.factor_error, sizes, directed
        )
        right_output = truth.answers[OUTPUT]

    def compare(name: str, answer: Tensor) -> float:
        if truth is None:
            return 0.0
        if sample is not None and name in (OUTPUT, UNDER_NO_GRAD, gradient_of("input")):
            if name == gradient_of("input"):
                _check_zero(name, unsampled(sample, answer), truth.tolerance(name, dtype, accuracy))
            answer = sampled(sample, answer)
        return _compare(name, answer, truth, arithmetic, accuracy, suspects, together=not repeats)

    before = replace(history)
    with tensors_kept(tensors):
        output = implementation(**arguments)
    _check_form(
        OUTPUT, output, expected, tensors, dtype, device, partial(_output_cause, suspects, right_output)
    )
    _check_unchanged(tensors, pristine)
    answers = {OUTPUT: history.add(arguments, output)}
    history.explain(before, sample, right_output)
    errors = [compare(OUTPUT, answers[OUTPUT])]
    if not needed:
        if output.requires_grad:
            raise Mismatch("the output has a gradient where no argument needs one")
        answers[UNDER_NO_GRAD] = _without_gradient(implementation, arguments, tensors)
        _check_form(UNDER_NO_GRAD, answers[UNDER_NO_GRAD], expected, tensors, dtype, device)
    elif output.requires_grad:
        directed = directions(tensors) if case.order == 2 else {}
        try:
            differentiated = answers_of(output, needed, grad_output.requires_grad_(case.order == 2), directed)
        except RuntimeError as error:
            text, cause = backward_fault(error, suspects)
            if not text:
                raise
            raise Mismatch(text, cause) from error
        answers = differentiated | answers
        for name in needed:
            if gradient_of(name) not in answers:
                text = f"no gradient reaches {name}"
                raise Mismatch(
                    text, f"{text}: return it from backward, and cut it off by no .detach(), .data or no_grad"
                )
    elif output.numel():
        text = "the output is cut off from the gradient"
        raise Mismatch(text, f"{text}: use torch's operations, an autograd.Function, or derived_backward")
    _check_unchanged(tensors, pristine)
    _check_unchanged({"the incoming gradient": grad_output}, {"the incoming gradient": pristine_grad_output})
    if truth is None:
        for name, given in (known or {}).items():
            if not same(given, answers[name]):
                raise Mismatch(f"{name} differs between two runs on the same data", NOT_DETERMINISTIC)
        return answers, 0.0
    errors += [compare(name, each) for name, each in answers.items() if name != OUTPUT]
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
    arguments, pristine = _arguments(op, case, dtype, device, seed, history)
    output = implementation(**arguments)
    owners = [arguments[name].untyped_storage().data_ptr() for name in pristine]
    if isinstance(output, Tensor) and output.untyped_storage().data_ptr() not in owners:
        history.add(arguments, output)


def _arguments(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    history: History,
    refill: bool = False,
    few: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of a call, with gradients as the case needs them, and another copy of its tensors."""
    fresh = case.arguments(dtype, device, seed)
    pristine = {name: fresh[name] for name in op.tensors if isinstance(fresh.get(name), Tensor)}
    if refill and history.arguments and can_refill(case):
        arguments = history.refill(fresh, seed, few)
        return arguments, {name: arguments[name].detach().clone() for name in pristine}
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
    cause_of_shape: Callable[[Tensor], str] = lambda output: "",
) -> None:
    if not isinstance(output, Tensor):
        kind = "None" if output is None else f"of type {type(output).__name__}"
        text = f"the {name} is {kind}, not a tensor"
        raise Mismatch(text, f"{text}: return one torch.Tensor and nothing else")
    if output.device.type != device.type:
        text = f"the {name} is on {output.device}, not on {device}"
        raise Mismatch(text, f"{text}: make it on input.device")
    if output.shape != shape:
        raise Mismatch(
            f"the {name} has shape {tuple(output.shape)}, not {tuple(shape)}", cause_of_shape(output)
        )
    if output.dtype != dtype:
        text = f"the {name} is {output.dtype}, not {dtype}"
        raise Mismatch(text, f"the {name} has another dtype than the input: make it with dtype=input.dtype")
    for argument, tensor in tensors.items():
        owner = tensor.untyped_storage()
        if output.numel() and output.untyped_storage().data_ptr() == owner.data_ptr():
            text = f"the {name} shares the memory of {argument}"
            raise Mismatch(text, f"{text}: return a new tensor, such as output.clone()")


def _output_cause(suspects: Suspects, right: Tensor, output: Tensor) -> str:
    return suspects.cause(OUTPUT, output, right, torch.ones_like(right, dtype=torch.bool))


def _check_unchanged(tensors: Mapping[str, Tensor], pristine: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not same(tensor.detach(), pristine[name]):
            text = f"{name} was changed in place"
            raise Mismatch(text, f"{text}: work on a copy, such as {name.split()[-1]}.clone()")


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
    name: str,
    answer: Tensor,
    truth: Reference,
    arithmetic: Arithmetic,
    accuracy: Accuracy,
    suspects: Suspects,
    together: bool,
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
            f"{right.numel()} elements are wrong{diagnose(of, answer, right, ratio > 1)}",
            suspects.cause(of, answer, right, ratio > 1),
        )
    joint = rms_error_ratio(answer, right, truth.rms_tolerance(of, dtype, accuracy)) if together else 0.0
    if joint > 1:
        raise Mismatch(
            f"the errors of the {name} are together {joint:.3g} times what rounding in "
            f"{arithmetic.name} explains (root mean square over {right.numel()} elements)"
        )
    difference = (answer.double() - right).abs().nan_to_num(nan=0.0, posinf=0.0).max()
    return float(difference / right.abs().nan_to_num(nan=0.0, posinf=0.0).max().clamp_min(1e-300))
