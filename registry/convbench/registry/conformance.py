"""Is a backend right? Forward and gradients against a float64 reference, on random data, trusting nothing.

Each case runs three times: on memory that was filled with NaN, so that unwritten output shows; on new data of
the same shapes, so that a remembered answer shows; and on the first data again, so that chance shows. In
between, inputs are compared with what was handed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from convbench.registry.cases import Case, conformance_cases, refused_calls
from convbench.registry.discovery import describe, discover
from convbench.registry.errors import Unsupported
from convbench.registry.global_state import left_as_found
from convbench.registry.lasting import check_lasting
from convbench.registry.memory import out_of_memory
from convbench.registry.ops import OPS, Op
from convbench.registry.records import Accuracy, Backend
from convbench.registry.symptoms import symptom
from convbench.registry.tampering import Misconduct, Originals
from convbench.registry.tolerances import ELEMENTWISE, bound, excess, largest, root_mean_square

State = Literal["passed", "failed", "crashed", "unsupported"]
ORIGINALS = Originals()


@dataclass(frozen=True)
class Outcome:
    """What one case came to.

    `error` is the largest absolute error of outputs and gradients, in units of the reference's largest value.
    `memory` marks a crash for want of memory.
    """

    op: str
    case: str
    dtype: str
    device: str
    state: State
    message: str = ""
    error: float = 0.0
    memory: bool = False


@dataclass(frozen=True)
class Report:
    """Every outcome of one backend; `accuracy` is what it declares of ops that are not direct sums."""

    backend: str
    outcomes: tuple[Outcome, ...]
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict, hash=False)

    @property
    def passed(self) -> bool:
        """Something passed, and nothing failed or crashed; what is declared unsupported counts as neither."""
        return self.count("passed") > 0 and not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What failed or crashed."""
        return tuple(outcome for outcome in self.outcomes if outcome.state in ("failed", "crashed"))

    @property
    def max_error(self) -> float:
        """The largest error of the cases that passed."""
        return max(
            (outcome.error for outcome in self.outcomes if outcome.state == "passed"), default=math.nan
        )

    def count(self, state: State) -> int:
        """How many cases came to `state`."""
        return sum(outcome.state == state for outcome in self.outcomes)


def verify(
    backend: Backend | str,
    *,
    device: str = "cpu",
    dtypes: Iterable[str] | None = None,
    cases: Mapping[str, Iterable[Case]] | None = None,
    seed: int = 0,
) -> Report:
    """Hold a backend against the contract.

    Args:
        backend: a record, or the name of a registered one.
        device: the torch device to run on.
        dtypes: those to check; every one the backend claims when None.
        cases: calls by op, such as those of one model; the conformance cases when None.
        seed: of the random data.

    Raises:
        UnknownName: no backend of that name is registered.
    """
    if isinstance(backend, str):
        backend = discover().backend(backend)
    outcomes = []
    tampering = tampered(backend)
    if tampering is not None:
        return Report(backend.name, (tampering,))
    for dtype in backend.dtypes if dtypes is None else dtypes:
        for name, op in OPS.items():
            if name not in backend.ops:
                if cases is None:
                    outcomes.append(Outcome(name, name, dtype, device, "unsupported", "not offered"))
                continue
            chosen = conformance_cases(name) if cases is None else cases.get(name, ())
            for case in chosen:
                outcomes.append(check(backend, op, case, dtype, device, seed))
            if cases is None:
                outcomes += [check_refusal(backend, op, case, dtype, device) for case in refused_calls(name)]
    tampering = tampered(backend)
    outcomes += [tampering] if tampering is not None else []
    return Report(backend.name, tuple(outcomes), backend.accuracy)


def check(backend: Backend, op: Op, case: Case, dtype: str, device: str, seed: int = 0) -> Outcome:
    """Run one case of `op` on `backend` and compare it with the reference."""
    implementation = backend.ops[op.name]
    kind, place = getattr(torch, dtype), torch.device(device)
    accuracy = backend.accuracy.get(op.name, ELEMENTWISE)

    def outcome(state: State, message: str = "", error: float = 0.0) -> Outcome:
        return Outcome(op.name, str(case), dtype, device, state, message, error)

    try:
        with left_as_found():
            check_lasting(op, implementation, case, kind, place, seed + 2)
        with _poisoned_memory():
            first, error_first = _run(op, implementation, case, kind, place, seed, accuracy)
        _, error_second = _run(op, implementation, case, kind, place, seed + 1, accuracy)
        if backend.deterministic:
            again, _ = _run(op, implementation, case, kind, place, seed, compare=False)
            for name, answer in first.items():
                if not torch.equal(answer.nan_to_num(), again[name].nan_to_num()):
                    return outcome("failed", f"{name} differs between two runs on the same data")
    except Unsupported as refusal:
        return outcome("unsupported", str(refusal))
    except (_Mismatch, Misconduct) as mismatch:
        return outcome("failed", str(mismatch))
    except Exception as error:  # noqa: BLE001 - a backend's code: anything can come out of it
        return replace(outcome("crashed", describe(error)), memory=out_of_memory(error))
    return outcome("passed", error=max(error_first, error_second))


def tampered(backend: Backend) -> Outcome | None:
    """Load the backend; a failure where loading or calling it has changed what it is judged by."""
    try:
        with left_as_found():
            dict(backend.ops)
        ORIGINALS.check()
    except Misconduct as misconduct:
        return Outcome("", "", "", "", "failed", str(misconduct))
    return None


def check_refusal(backend: Backend, op: Op, case: Case, dtype: str, device: str) -> Outcome:
    """Hand a backend a call that torch refuses; it must raise, not answer."""
    arguments = case.arguments(getattr(torch, dtype), torch.device(device), seed=0)
    label = f"{case}, which torch refuses"
    try:
        backend.ops[op.name](**arguments)
    except Exception as error:  # noqa: BLE001 - any exception is the right answer here
        return Outcome(op.name, label, dtype, device, "passed", describe(error))
    return Outcome(op.name, label, dtype, device, "failed", "an answer was given where torch raises")


class _Mismatch(Exception):
    """An answer that is not the reference's; the text says in what."""


def _run(
    op: Op,
    implementation: Callable[..., Any],
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    accuracy: Accuracy = ELEMENTWISE,
    compare: bool = True,
) -> tuple[dict[str, Tensor], float]:
    """The output and gradients of one call by name, and the largest relative error."""
    arguments = case.arguments(dtype, device, seed)
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    pristine = {name: arguments[name].clone() for name in tensors}
    for name in tensors:
        arguments[name].requires_grad_()

    exact, magnitude, upstream = _reference(op, {**arguments, **pristine}, tensors, seed, accuracy)
    output = implementation(**arguments)
    _check_form(output, exact["output"], arguments, tensors, dtype, device)
    answers = {"output": output.detach()}
    if output.requires_grad:
        gradients = torch.autograd.grad(
            output, [arguments[name] for name in tensors], upstream.to(dtype), allow_unused=True
        )
        for name, gradient in zip(tensors, gradients, strict=True):
            if gradient is None:
                raise _Mismatch(f"no gradient reaches {name}")
            answers[f"gradient of {name}"] = gradient
    elif output.numel():
        raise _Mismatch("the output is cut off from the gradient")
    for name in tensors:
        if not torch.equal(arguments[name].detach(), pristine[name]):
            raise _Mismatch(f"{name} was changed in place")
    if not compare:
        return answers, 0.0

    terms = _terms(op, arguments, exact["output"])
    error = 0.0
    for name, answer in answers.items():
        admissible = bound(exact[name], magnitude[name], terms[name], dtype, accuracy)
        error = max(error, _compare(name, answer, exact[name], admissible))
    return answers, error


def _reference(
    op: Op, arguments: dict[str, Any], tensors: list[str], seed: int, accuracy: Accuracy
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Exact output and gradients, the magnitudes that bound their rounding errors, and the output's gradient."""
    wide = {name: arguments[name].detach().double().requires_grad_() for name in tensors}
    output = op.reference(**{**arguments, **wide})
    generator = torch.Generator().manual_seed(seed + 7919)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
    upstream = upstream.to(arguments["input"].dtype).double()  # representable, so that only the op rounds
    exact = _with_gradients(output, wide, upstream)

    normwise = accuracy.model == "normwise"
    size = root_mean_square if normwise else torch.abs
    if op.multilinear:
        wide = {name: size(tensor.detach().abs()).requires_grad_() for name, tensor in wide.items()}
        output = op.reference(**{**arguments, **wide})
    else:  # a selection: its output is exact, its gradient a sum of upstream values
        output = op.reference(**{**arguments, **wide})
    magnitude = {name: tensor.abs() for name, tensor in _with_gradients(output, wide, size(upstream)).items()}
    if normwise:
        magnitude = {name: largest(tensor) for name, tensor in magnitude.items()}
    return exact, magnitude, upstream


def _with_gradients(output: Tensor, wide: Mapping[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(output, list(wide.values()), upstream)
    named = {f"gradient of {name}": gradient for name, gradient in zip(wide, gradients, strict=True)}
    return {"output": output.detach(), **named}


def _terms(op: Op, arguments: Mapping[str, Any], output: Tensor) -> dict[str, int]:
    """How many terms are summed into one element of the output and of each gradient."""
    reduction = op.reduction(arguments)
    positions = max(1, output.numel() // max(1, output.shape[1]))  # N·H'·W': a weight sees every position
    input_terms = reduction
    if "weight" in arguments:
        input_terms = max(1, arguments["weight"].numel() // max(1, arguments["weight"].shape[1]))
    return {
        "output": reduction,
        "gradient of input": input_terms,
        "gradient of weight": positions,
        "gradient of bias": positions,
    }


def _check_form(
    output: Any,
    expected: Tensor,
    arguments: Mapping[str, Any],
    tensors: list[str],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not isinstance(output, Tensor):
        raise _Mismatch(f"the output is a {type(output).__name__}, not a tensor")
    if output.shape != expected.shape:
        raise _Mismatch(f"the output has shape {tuple(output.shape)}, not {tuple(expected.shape)}")
    if output.dtype != dtype:
        raise _Mismatch(f"the output is {output.dtype}, not {dtype}")
    if output.device.type != device.type:
        raise _Mismatch(f"the output is on {output.device}, not on {device}")
    for name in tensors:
        owner = arguments[name].untyped_storage()
        if output.numel() and output.untyped_storage().data_ptr() == owner.data_ptr():
            raise _Mismatch(f"the output shares the memory of {name}")


def _compare(name: str, answer: Tensor, exact: Tensor, admissible: Tensor) -> float:
    """The largest error in units of the reference's largest value; raises where one is inadmissible."""
    if answer.shape != exact.shape:
        raise _Mismatch(f"the {name} has shape {tuple(answer.shape)}, not {tuple(exact.shape)}")
    if not exact.numel():
        return 0.0
    ratio = excess(answer, exact, admissible)
    worst = int(ratio.argmax())
    if ratio.flatten()[worst] > 1:
        got, wanted = float(answer.flatten()[worst]) + 0.0, float(exact.flatten()[worst])  # no -0
        raise _Mismatch(
            f"the {name} is {got:.9g} where {wanted:.9g} is right, {float(ratio.flatten()[worst]):.3g} times "
            f"the admissible error, at {_position(worst, exact.shape)}; {int((ratio > 1).sum())} of "
            f"{exact.numel()} elements are wrong{symptom(answer, exact, ratio > 1)}"
        )
    difference = (answer.double() - exact).abs().nan_to_num(nan=0.0, posinf=0.0).max()
    return float(difference / exact.abs().nan_to_num(posinf=0.0).max().clamp_min(1e-300))


def _position(flat: int, shape: Iterable[int]) -> list[int]:
    position = []
    for size in reversed(list(shape)):
        flat, index = divmod(flat, size)
        position.append(index)
    return position[::-1]


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, as torch does for determinism's sake."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module that is a class, which type checkers do not see
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled
