"""Checks the calls of real training steps: is a backend as right there as it is in verification?

A backend can tell verification from training: verified inputs need a gradient and images do not, modes differ, and
so do the numbers. So a few steps of the model itself are watched, outside of the clock: each output is compared
with the float64 reference at once, on the layer's real arguments, and after the backward pass each op's gradients
are, for the gradient that really came in and for a random one. In steps that are not watched the backend has the
same callers.

Errors are compared with the largest tolerance of the tensor: real data have no mean of zero, and an error that
only the stricter tolerance of verification shows is for verification to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import wraps
from random import SystemRandom
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from convbench.registry.conformance.aliasing import same
from convbench.registry.conformance.batch_sampling import (
    restricted_call,
    sample_images,
    sampled,
    scattered,
)
from convbench.registry.conformance.cases import Case, case_of
from convbench.registry.conformance.diagnosis import diagnose
from convbench.registry.conformance.reference.answers import ANY_DATA, OUTPUT, gradient_of
from convbench.registry.conformance.reference.call import reference_answers
from convbench.registry.conformance.tolerances import ELEMENTWISE
from convbench.registry.errors import Unsupported
from convbench.registry.integrity.model_state import tensors_kept
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.records import Accuracy, Backend

SHARE = 0.1  # of a large call's images that verification compares: a step makes the same call several times


_AS_IT_IS = nullcontext()


@dataclass(frozen=True)
class Call:
    """One call that a model made of the backend."""

    case: Case
    served: bool


class StepAudit:
    """Stands between a model and a backend, and checks the backend's results while it is `watching`.

    Route the model to `backend`, in all of its steps: in those that are not watched nothing is done. `calls` are
    those that were watched. `factor_error` is the relative error allowed in the factors of products, and `share`
    how many of the images that verification compares are compared here.
    """

    def __init__(self, backend: Backend, factor_error: float = 0.0, share: float = SHARE) -> None:
        self.calls: list[Call] = []
        self._factor_error, self._share = factor_error, share
        self._watching = False
        self._gradients: list[_Gradients] = []
        ops = {
            name: self._between(OPS[name], implementation, backend.accuracy.get(name, ELEMENTWISE))
            for name, implementation in backend.ops.items()
            if name in OPS
        }
        self.backend = replace(backend, load=lambda: ops)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every call within; raises IntegrityError for a wrong output."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            self._gradients.clear()

    def check_gradients(self) -> None:
        """Check the gradients of the calls so far, after a backward pass that retained the graph.

        Raises:
            IntegrityError: one of them is wrong.
        """
        for gradients in self._gradients:
            gradients.check()
        self._gradients.clear()

    def _between(self, op: Op, implementation: Callable[..., Any], accuracy: Accuracy) -> Callable[..., Any]:
        @wraps(implementation)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with self._keeping(op, args, kwargs):
                    output = implementation(*args, **kwargs)
            except Unsupported:
                if self._watching:
                    self.calls.append(Call(case_of(op.name, op.bind(args, kwargs)), served=False))
                raise
            if self._watching:
                self._check(
                    _Answer(op, op.bind(args, kwargs), accuracy, self._factor_error, self._share), output
                )
            return output

        return call

    def _keeping(self, op: Op, args: Any, kwargs: Any) -> AbstractContextManager[None]:
        """In a watched call, that its tensors stay what they are."""
        if not self._watching:
            return _AS_IT_IS
        arguments = op.bind(args, kwargs)
        return tensors_kept({name: value for name, value in arguments.items() if isinstance(value, Tensor)})

    def _check(self, answer: _Answer, output: Tensor) -> None:
        taken = output.detach().clone()  # at once: what is written later is too late
        self.calls.append(Call(answer.case, served=True))
        gradients = answer.check(output, taken)
        if gradients is not None:
            self._gradients.append(gradients)


@dataclass
class _Answer:
    """One call, and how its answers are compared with the reference."""

    op: Op
    arguments: Mapping[str, Any]
    accuracy: Accuracy
    factor_error: float
    share: float
    sample: Tensor | None = None

    def __post_init__(self) -> None:
        self.case = case_of(self.op.name, self.arguments)
        self.wanted = [
            name
            for name in self.op.tensors
            if isinstance(self.arguments.get(name), Tensor) and self.arguments[name].requires_grad
        ]

    def check(self, output: Tensor, taken: Tensor) -> _Gradients | None:
        """Compare an output; what is left to check after the backward pass, where it has gradients.

        Raises:
            IntegrityError: it is wrong.
        """
        if torch.is_grad_enabled() and self.wanted and not output.requires_grad:
            raise IntegrityError(f"{self.case}: the output is cut off from the gradient")
        expected = self.op.on_meta(self.arguments)[1].shape
        if taken.shape != expected:
            raise IntegrityError(
                f"{self.case}: the output has shape {tuple(taken.shape)}, not {tuple(expected)}"
            )
        self.sample = sample_images(self.op, self.arguments, SystemRandom().getrandbits(31), self.share)
        gradients = None
        if output.requires_grad:
            edges = [get_gradient_edge(self.arguments[name]) for name in self.wanted]
            gradients = _Gradients(self, get_gradient_edge(output), edges, taken)
            output.register_hook(gradients.received.append)
        # copies: what comes after may write into its arguments
        self.arguments = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in restricted_call(self.sample, self.arguments).items()
        }
        given = self.drawn(taken)
        self.compare({OUTPUT: sampled(self.sample, taken)}, given)
        if not same(output.detach(), taken):
            raise IntegrityError(f"{self.case}: the output was still being written after the op had returned")
        return gradients

    def drawn(self, output: Tensor) -> Tensor:
        """A random gradient of an output's sampled images; torch's own random numbers stay as they are."""
        wide = torch.promote_types(output.dtype, torch.float32)
        generator = torch.Generator(output.device).manual_seed(SystemRandom().getrandbits(63))
        given = torch.randn(
            (len(output) if self.sample is None else len(self.sample), *output.shape[1:]),
            dtype=wide,
            device=output.device,
            generator=generator,
        )
        return given.to(output.dtype)

    def compare(self, answers: Mapping[str, Tensor], grad_output: Tensor) -> None:
        """Raise IntegrityError where one of the answers, of the sampled images, is wrong."""
        op, accuracy = self.op, Accuracy(growth=self.accuracy.growth)
        # real numbers do not cancel as random ones do: the sum of magnitudes counts, not the root of their squares
        wanted = self.wanted if set(answers) - {OUTPUT} else []
        truth = reference_answers(
            op, self.arguments, grad_output, accuracy, self.factor_error, ANY_DATA, wanted=wanted
        )
        for name, answer in answers.items():
            right, size = truth.answers[name], truth.magnitudes[name] / math.sqrt(truth.terms[name])
            if not right.numel() or _overflows(right, size, answer.dtype):
                continue
            admissible = truth.tolerance(name, answer.dtype, accuracy)
            answer = answer.double()
            if name != OUTPUT and not (op.base or op).multilinear:
                # the zeros of a ReLU tie, and which of them has the gradient is the op's choice: hold whole planes
                answer, right, admissible = (each.sum(dim=(-2, -1)) for each in (answer, right, admissible))
            _compare(self.case, name, answer, right, float(admissible.max()))


@dataclass
class _Gradients:
    """What is left to check of a call after the backward pass: `received` has the gradient of its output then.

    Edges of the graph stand for the tensors, which may have been written to by then.
    """

    answer: _Answer
    output: GradientEdge
    inputs: Sequence[GradientEdge]
    taken: Tensor
    received: list[Tensor] = field(default_factory=list)

    def check(self) -> None:
        """Raise IntegrityError where a gradient is wrong."""
        answer = self.answer
        for real in self.received[:1]:
            self._check(sampled(answer.sample, real.detach()))
        self._check(answer.drawn(self.taken))

    def _check(self, grad_output: Tensor) -> None:
        sample = self.answer.sample
        gradients = torch.autograd.grad(
            [self.output],
            self.inputs,
            scattered(sample, grad_output, len(self.taken)),
            retain_graph=True,
            allow_unused=True,
        )
        answers = {}
        for name, gradient in zip(self.answer.wanted, gradients, strict=True):
            if gradient is None:
                raise IntegrityError(f"{self.answer.case}: no gradient reaches {name}")
            answers[gradient_of(name)] = sampled(sample, gradient) if name == "input" else gradient
        self.answer.compare(answers, grad_output)


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
