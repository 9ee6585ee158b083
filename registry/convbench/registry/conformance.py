"""Is a backend right? Forward and gradients against a float64 reference, on random data, trusting nothing.

Each case runs three times: on memory that was filled with NaN, so that unwritten output shows; on new data of
the same shapes, so that a remembered answer shows; and on the first data again, so that chance shows. In
between, inputs are compared with what was handed over. docs/correctness.md explains all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from convbench.registry.answering import Mismatch, answer
from convbench.registry.cases import Case, conformance_cases, refused_calls
from convbench.registry.derived import backward_is_derived
from convbench.registry.discovery import describe, discover
from convbench.registry.errors import Unsupported
from convbench.registry.generated_cases import generated_cases
from convbench.registry.global_state import left_as_found
from convbench.registry.lasting import can_last, check_lasting, same
from convbench.registry.memory import out_of_memory
from convbench.registry.ops import OPS, Op
from convbench.registry.outcomes import GENERATED, Outcome, Report, State
from convbench.registry.records import Backend
from convbench.registry.reproduction import python_of
from convbench.registry.tampering import Misconduct, Originals
from convbench.registry.tolerances import ELEMENTWISE

__all__ = ["Outcome", "Report", "State", "check", "check_refusal", "verify", "whole_contract"]

ORIGINALS = Originals()

Found = list[tuple[Case | None, Outcome]]  # the case of an outcome, where it is of one


def verify(
    backend: Backend | str,
    *,
    device: str = "cpu",
    dtypes: Iterable[str] | None = None,
    cases: Mapping[str, Iterable[Case]] | None = None,
    generated: int = GENERATED,
    seed: int = 0,
    shrink: bool = False,
) -> Report:
    """Hold a backend against the contract.

    Args:
        backend: a record, or the name of a registered one.
        device: the torch device to run on.
        dtypes: those to check; every one the backend claims when None.
        cases: calls by op, such as those of one model, and nothing else; the whole contract when None.
        generated: how many cases to generate for each op and dtype, beside the curated ones of the contract.
        seed: of the random data, and of the generated cases.
        shrink: look for the smallest case that fails in place of the first failing one of each op.

    Raises:
        UnknownName: no backend of that name is registered.
    """
    if isinstance(backend, str):
        backend = discover().backend(backend)
    outcomes: list[Outcome] = []
    tampering = tampered(backend)
    if tampering is not None:
        return Report(backend.name, (tampering,))
    wanted = tuple(backend.dtypes if dtypes is None else dtypes)
    for name, op in OPS.items():
        if name not in backend.ops:
            if cases is None and op.base is None:  # a fused one is no more than two others
                outcomes += [
                    Outcome(name, name, dtype, device, "unsupported", "not offered") for dtype in wanted
                ]
            continue
        if cases is not None:
            found: Found = [
                (case, check(backend, op, case, dtype, device, seed))
                for dtype in wanted
                for case in cases.get(name, ())
            ]
        else:
            found = _checked(backend, op, wanted, device, generated, seed)
        outcomes += _shrunk(backend, op, found, seed) if shrink else [outcome for _, outcome in found]
    tampering = tampered(backend)
    outcomes += [tampering] if tampering is not None else []
    derived = tuple(name for name, op in backend.ops.items() if backward_is_derived(op))
    return Report(backend.name, tuple(outcomes), backend.accuracy, derived)


def whole_contract(backend: Backend, op: str, generated: int = GENERATED, seed: int = 0) -> list[Case]:
    """The curated cases of an op, and so many generated ones; of first order where no more is claimed."""
    chosen, drawn = conformance_cases(op), generated_cases(op, generated, seed)
    if op not in backend.second_order:
        chosen = [case for case in chosen if case.order == 1]
        drawn = [replace(case, order=1) for case in drawn]
    return list(dict.fromkeys((*chosen, *drawn)))


def check(backend: Backend, op: Op, case: Case, dtype: str, device: str, seed: int = 0) -> Outcome:
    """Run one case of `op` on `backend` and compare it with the reference."""
    return check_with(backend, backend.ops[op.name], op, case, dtype, device, seed)


def check_with(
    backend: Backend,
    implementation: Callable[..., Any],
    op: Op,
    case: Case,
    dtype: str,
    device: str,
    seed: int = 0,
) -> Outcome:
    """Check an implementation of `op` for what `backend` claims."""
    kind, place = getattr(torch, dtype), torch.device(device)
    accuracy = backend.accuracy.get(op.name, ELEMENTWISE)

    def outcome(state: State, message: str = "", error: float = 0.0) -> Outcome:
        python = python_of(backend.name, case, dtype, device, seed) if state in ("failed", "crashed") else ""
        return Outcome(op.name, str(case), dtype, device, state, message, error, reproduction=python)

    if kind.itemsize < 4:
        # the gradients in between would be rounded to half precision, and torch's own kernels multiply the zeros
        # that they pad with by the infinities
        case = replace(case, order=1, special=False)
    if case.order == 2 and op.name not in backend.second_order:
        return outcome("unsupported", "gradients of gradients are not among its claims (second_order)")
    try:
        with left_as_found():
            if can_last(case):
                check_lasting(op, implementation, case, kind, place, seed + 2)
            with _poisoned_memory():
                first, error = answer(op, implementation, case, kind, place, seed, accuracy)
            _, error_on_new_data = answer(op, implementation, case, kind, place, seed + 1, accuracy)
            if backend.deterministic:
                again, _ = answer(op, implementation, case, kind, place, seed, compare=False)
                for name, given in first.items():
                    if not same(given, again[name]):
                        raise Mismatch(f"{name} differs between two runs on the same data")
    except Unsupported as refusal:
        return outcome("unsupported", str(refusal))
    except (Mismatch, Misconduct) as mismatch:
        return outcome("failed", str(mismatch))
    except Exception as crash:  # noqa: BLE001 - a backend's code: anything can come out of it
        return replace(outcome("crashed", describe(crash)), memory=out_of_memory(crash))
    return outcome("passed", error=max(error, error_on_new_data))


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
        return Outcome(op.name, label, dtype, device, "passed", describe(error), kind="refusal")
    python = python_of(backend.name, case, dtype, device, refused=True)
    message = "an answer was given where torch raises"
    return Outcome(op.name, label, dtype, device, "failed", message, kind="refusal", reproduction=python)


def _checked(
    backend: Backend, op: Op, dtypes: tuple[str, ...], device: str, generated: int, seed: int
) -> Found:
    """The curated cases and generated ones, what torch refuses, and what torch's own tools say of the op."""
    from convbench.registry.torch_checks import check_torch

    found: Found = []
    for dtype in dtypes:
        for case in whole_contract(backend, op.name, generated, seed):
            found.append((case, check(backend, op, case, dtype, device, seed)))
        for case in refused_calls(op.name):
            found.append((None, check_refusal(backend, op, case, dtype, device)))
    if dtypes and any(outcome.kind == "case" and outcome.state == "passed" for _, outcome in found):
        found += [(None, outcome) for outcome in check_torch(backend, op.name, dtypes[0], device, seed)]
    return found


def _shrunk(backend: Backend, op: Op, found: Found, seed: int) -> Iterator[Outcome]:
    """The outcomes, the first failing case of each state with the smallest case that fails as it does."""
    from convbench.registry.shrinking import shrink

    done: set[str] = set()
    for case, outcome in found:
        if case is None or outcome.state not in ("failed", "crashed") or outcome.state in done:
            yield outcome
            continue
        done.add(outcome.state)
        dtype, device = outcome.dtype, outcome.device
        yield shrink(outcome, case, partial(_again, backend, op, dtype, device, seed))


def _again(backend: Backend, op: Op, dtype: str, device: str, seed: int, case: Case) -> Outcome:
    return check(backend, op, case, dtype, device, seed)


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
