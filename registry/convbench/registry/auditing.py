"""Is a backend as right in a real step as it is in verification?

A backend may tell verification from work: by the gradient that verified inputs have and images have not, by
modes, by the numbers themselves. So steps of the model itself are taken, outside every clock, in which each
answer is held against the float64 reference at once, with what the layer really was given.

Errors are measured against the largest admissible one of a tensor: real numbers have no mean of zero, and an
error that only verification's stricter bound shows is for verification to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any

import torch
from torch import Tensor

from convbench.registry.cases import Case, case_of
from convbench.registry.errors import Unsupported
from convbench.registry.exact import OUTPUT, Exact, gradient_of, partial_sums_of, terms_of
from convbench.registry.few_images import call_of, few_images, of, zero_elsewhere
from convbench.registry.fused_exact import ANY, exact_fused
from convbench.registry.lasting import same
from convbench.registry.ops import OPS, Op
from convbench.registry.records import Accuracy, Backend
from convbench.registry.symptoms import symptom
from convbench.registry.tampering import Misconduct
from convbench.registry.tolerances import ELEMENTWISE


@dataclass(frozen=True)
class Call:
    """One call that a model made of the backend."""

    case: Case
    served: bool


def audited(backend: Backend, calls: list[Call]) -> Backend:
    """The same backend, every answer checked as it is given; what was called is appended to `calls`.

    Its ops raise Misconduct for a wrong output or a wrong gradient.
    """
    ops = {
        name: _audited(OPS[name], implementation, backend.accuracy.get(name, ELEMENTWISE), calls)
        for name, implementation in backend.ops.items()
        if name in OPS
    }
    return replace(backend, load=lambda: ops)


def _audited(
    op: Op, implementation: Callable[..., Any], accuracy: Accuracy, calls: list[Call]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = op.bind(args, kwargs)
        case = case_of(op.name, arguments)
        try:
            output = implementation(*args, **kwargs)
        except Unsupported:
            calls.append(Call(case, served=False))
            raise
        calls.append(Call(case, served=True))
        taken = output.detach().clone()  # at once: what is written later is too late
        check_answer(op, case, arguments, output, taken, accuracy)
        return output

    return call


def check_answer(
    op: Op, case: Case, arguments: Mapping[str, Any], output: Tensor, taken: Tensor, accuracy: Accuracy
) -> None:
    """Hold an output, and gradients that flow back from a random one, against the reference; raise Misconduct."""
    wanted = [
        name
        for name in op.tensors
        if isinstance(arguments.get(name), Tensor) and arguments[name].requires_grad
    ]
    if torch.is_grad_enabled() and wanted and not output.requires_grad:
        raise Misconduct(f"{case}: the output is cut off from the gradient")
    expected = op.on_meta(arguments)[1].shape
    if taken.shape != expected:
        raise Misconduct(f"{case}: the output has shape {tuple(taken.shape)}, not {tuple(expected)}")
    few = few_images(op, arguments, SystemRandom().getrandbits(31))
    upstream = torch.randn(output.shape, dtype=torch.float64, device=output.device).to(output.dtype)
    upstream = zero_elsewhere(few, upstream)
    answers = {OUTPUT: of(few, taken)}
    if output.requires_grad:
        gradients = torch.autograd.grad(
            output, [arguments[name] for name in wanted], upstream, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is None:
                raise Misconduct(f"{case}: no gradient reaches {name}")
            answers[gradient_of(name)] = of(few, gradient) if name == "input" else gradient
    arguments, upstream = call_of(few, arguments), of(few, upstream)
    # real numbers do not cancel as random ones do: the sum of the terms' magnitudes, not the root of their squares
    if op.base is not None:
        truth = exact_fused(op, arguments, upstream, {}, accuracy, ANY)
    else:
        truth = _exact(op, arguments, wanted, upstream)
    for name, answer in answers.items():
        right, size = truth.answers[name], truth.magnitudes[name] / math.sqrt(truth.terms[name])
        if not right.numel() or _overflows(right, size, answer.dtype):
            continue
        admissible = truth.bound(name, answer.dtype, Accuracy(growth=accuracy.growth))
        answer = answer.double()
        if name != OUTPUT and not (op.base or op).multilinear:
            # the zeros of a ReLU tie, and which of them has the gradient is the op's choice: hold whole planes
            answer, right, admissible = (each.sum(dim=(-2, -1)) for each in (answer, right, admissible))
        _compare(case, name, answer, right, float(admissible.max()))
    if not same(output.detach(), taken):
        raise Misconduct(f"{case}: the output was still being written after the op had returned")


def _exact(op: Op, arguments: Mapping[str, Any], wanted: list[str], upstream: Tensor) -> Exact:
    exact = _reference(op, arguments, wanted, upstream, torch.clone)
    size = _reference(op, arguments, wanted, upstream, torch.abs) if op.multilinear else exact
    terms, bias = terms_of(op, arguments, exact[OUTPUT]), arguments.get("bias")
    magnitudes = {name: math.sqrt(terms[name]) * each.abs() for name, each in size.items()}
    bias = bias.detach().double() if isinstance(bias, Tensor) else None
    return Exact(exact, magnitudes, terms, partial_sums_of(arguments), bias)


def _reference(
    op: Op,
    arguments: Mapping[str, Any],
    wanted: list[str],
    upstream: Tensor,
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
        if leaves and output.shape == upstream.shape:
            gradients = torch.autograd.grad(output, leaves, view(upstream.double()))
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
        raise Misconduct(
            f"{case}: the {name} is {got:.9g} where {right:.9g} is right, "
            f"{float(difference.flatten()[worst]) / admissible:.3g} times the largest admissible error"
            f"{symptom(name, answer, exact, difference > admissible)}"
        )
