"""Checks the calls of real training steps: is a backend as right there as it is in verification?

A backend can tell verification from training: verified inputs need a gradient and images do not, modes differ, and
so do the numbers. So a few steps of the model itself are run outside every timing, and each result is compared
with the float64 reference at once, on the layer's real arguments.

Errors are compared with the largest tolerance of the tensor: real data have no mean of zero, and an error that
only the stricter tolerance of verification shows is for verification to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.aliasing import same
from convbench.registry.conformance.batch_sampling import (
    restricted_call,
    sample_images,
    sampled,
    scattered,
)
from convbench.registry.conformance.cases import Case, case_of
from convbench.registry.conformance.diagnosis import diagnose
from convbench.registry.conformance.reference import (
    ANY_DATA,
    OUTPUT,
    Reference,
    fused_reference_answers,
    gradient_of,
    partial_sums_of,
    terms_of,
)
from convbench.registry.conformance.tolerances import ELEMENTWISE
from convbench.registry.errors import Unsupported
from convbench.registry.integrity.model_state import tensors_kept
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.records import Accuracy, Backend

SHARE = 0.25  # of a large call's images that verification compares: a step makes the same call several times


@dataclass(frozen=True)
class Call:
    """One call that a model made of the backend."""

    case: Case
    served: bool


def audited(backend: Backend, calls: list[Call], factor_error: float = 0.0) -> Backend:
    """A copy of the backend that checks every result and appends every call to `calls`.

    Its ops raise IntegrityError for a wrong output or a wrong gradient. `factor_error` is the relative error
    allowed in the factors of products.
    """
    ops = {
        name: _audited(
            OPS[name], implementation, backend.accuracy.get(name, ELEMENTWISE), calls, factor_error
        )
        for name, implementation in backend.ops.items()
        if name in OPS
    }
    return replace(backend, load=lambda: ops)


def _audited(
    op: Op, implementation: Callable[..., Any], accuracy: Accuracy, calls: list[Call], factor_error: float
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = op.bind(args, kwargs)
        case = case_of(op.name, arguments)
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        try:
            with tensors_kept(tensors):
                output = implementation(*args, **kwargs)
        except Unsupported:
            calls.append(Call(case, served=False))
            raise
        calls.append(Call(case, served=True))
        taken = output.detach().clone()  # at once: what is written later is too late
        check_answer(op, case, arguments, output, taken, accuracy, factor_error)
        return output

    return call


def check_answer(
    op: Op,
    case: Case,
    arguments: Mapping[str, Any],
    output: Tensor,
    taken: Tensor,
    accuracy: Accuracy,
    factor_error: float = 0.0,
) -> None:
    """Compare an output, and the gradients for a random gradient of it, with the reference.

    Raises:
        IntegrityError: one of them is wrong.
    """
    wanted = [
        name
        for name in op.tensors
        if isinstance(arguments.get(name), Tensor) and arguments[name].requires_grad
    ]
    if torch.is_grad_enabled() and wanted and not output.requires_grad:
        raise IntegrityError(f"{case}: the output is cut off from the gradient")
    expected = op.on_meta(arguments)[1].shape
    if taken.shape != expected:
        raise IntegrityError(f"{case}: the output has shape {tuple(taken.shape)}, not {tuple(expected)}")
    sample = sample_images(op, arguments, SystemRandom().getrandbits(31), SHARE)
    drawn = torch.promote_types(output.dtype, torch.float32)
    count = len(output) if sample is None else len(sample)
    given = torch.randn(count, *output.shape[1:], dtype=drawn, device=output.device).to(output.dtype)
    grad_output = scattered(sample, given, len(output))
    answers = {OUTPUT: sampled(sample, taken)}
    if output.requires_grad:
        gradients = torch.autograd.grad(
            output, [arguments[name] for name in wanted], grad_output, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is None:
                raise IntegrityError(f"{case}: no gradient reaches {name}")
            answers[gradient_of(name)] = sampled(sample, gradient) if name == "input" else gradient
    arguments, grad_output = restricted_call(sample, arguments), sampled(sample, grad_output)
    # real numbers do not cancel as random ones do: the sum of the terms' magnitudes, not the root of their squares
    if op.base is not None:
        truth = fused_reference_answers(op, arguments, grad_output, {}, accuracy, ANY_DATA, factor_error)
    else:
        truth = _exact(op, arguments, wanted, grad_output, factor_error)
    for name, answer in answers.items():
        right, size = truth.answers[name], truth.magnitudes[name] / math.sqrt(truth.terms[name])
        if not right.numel() or _overflows(right, size, answer.dtype):
            continue
        admissible = truth.tolerance(name, answer.dtype, Accuracy(growth=accuracy.growth))
        answer = answer.double()
        if name != OUTPUT and not (op.base or op).multilinear:
            # the zeros of a ReLU tie, and which of them has the gradient is the op's choice: hold whole planes
            answer, right, admissible = (each.sum(dim=(-2, -1)) for each in (answer, right, admissible))
        _compare(case, name, answer, right, float(admissible.max()))
    if not same(output.detach(), taken):
        raise IntegrityError(f"{case}: the output was still being written after the op had returned")


def _exact(
    op: Op, arguments: Mapping[str, Any], wanted: list[str], grad_output: Tensor, factor_error: float
) -> Reference:
    exact = _reference(op, arguments, wanted, grad_output, torch.clone)
    size = _reference(op, arguments, wanted, grad_output, torch.abs) if op.multilinear else exact
    terms, bias = terms_of(op, arguments, exact[OUTPUT]), arguments.get("bias")
    magnitudes = {name: math.sqrt(terms[name]) * each.abs() for name, each in size.items()}
    bias = bias.detach().double() if isinstance(bias, Tensor) else None
    return Reference(
        exact, magnitudes, terms, partial_sums_of(arguments), bias, op.factor_error(factor_error)
    )


def _reference(
    op: Op,
    arguments: Mapping[str, Any],
    wanted: list[str],
    grad_output: Tensor,
    view: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The exact output and gradients, of the tensors as `view` has them."""
    with torch.enable_grad():
        wide = {
            name: view(value.detach().double()) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        leaves = [wide[name].requires_grad_() for name in wanted]
        output = op.reference(**wide)
        answers = {OUTPUT: output.detach()}
        if leaves and output.shape == grad_output.shape:
            gradients = torch.autograd.grad(output, leaves, view(grad_output.double()))
            answers |= {gradient_of(name): each for name, each in zip(wanted, gradients, strict=True)}
    return answers


def _overflows(exact: Tensor, magnitude: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers go beyond the dtype, or those on the way beyond the accumulator's.

    A network that diverges is not the backend's doing. Half precision is summed in float32.
    """
    accumulator = dtype if torch.finfo(dtype).bits >= 32 else torch.float32
    fits = (exact.abs() < torch.finfo(dtype).max / 2) & (magnitude.abs() < torch.finfo(accumulator).max / 2)
    return not bool(fits.all())


def _compare(case: Case, name: str, answer: Tensor, exact: Tensor, admissible: float) -> None:
    difference = (answer - exact).abs().nan_to_num(nan=torch.inf)
    worst = int(difference.argmax())
    if float(difference.flatten()[worst]) > admissible:
        got, right = float(answer.flatten()[worst]) + 0.0, float(exact.flatten()[worst])  # no -0
        raise IntegrityError(
            f"{case}: the {name} is {got:.9g} where {right:.9g} is right, "
            f"{float(difference.flatten()[worst]) / admissible:.3g} times the largest admissible error"
            f"{diagnose(name, answer, exact, difference > admissible)}"
        )
