"""Is a backend right? Forward and gradients against a float64 reference, on random data, trusting nothing.

Each case runs three times: on memory that was filled with NaN, so that unwritten output shows; on new data of
the same shapes, so that a remembered answer shows; and on the first data again, in the tensors of the second run,
so that randomness shows, and an answer remembered by address. In between, inputs and the outputs before are
compared with their copies. docs/correctness.md explains all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from convbench.registry.authoring.derived_backward import backward_is_derived
from convbench.registry.conformance.aliasing import History, can_refill, same
from convbench.registry.conformance.cases import Case, conformance_cases, refused_calls
from convbench.registry.conformance.diagnosis import UNKNOWN, crash_cause, crash_message
from convbench.registry.conformance.minimize import literal, python_of, shrink
from convbench.registry.conformance.random_cases import generated_cases
from convbench.registry.conformance.report import (
    CASE,
    EXPLAINED,
    GENERATED,
    SMALLER,
    SPARED,
    TORCHS,
    Outcome,
    Report,
    State,
)
from convbench.registry.conformance.run_case import NOT_DETERMINISTIC, Mismatch, call_once, run_case
from convbench.registry.conformance.tolerances import ELEMENTWISE
from convbench.registry.discovery.plugins import describe, discover
from convbench.registry.errors import (
    PluginError,
    UnknownName,
    Unsupported,
    UsageError,
    choices,
    out_of_memory,
)
from convbench.registry.integrity.global_state import global_state_kept, memory_filled
from convbench.registry.integrity.monkeypatch_guard import IntegrityError, originals
from convbench.registry.known_faults import KnownFault, can_disable, disabled, fault_of_case
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.dtypes import DTYPES, arithmetic
from convbench.registry.records import Backend

__all__ = ["Outcome", "Report", "State", "check", "check_refusal", "verify", "whole_contract"]

Found = list[tuple[Case | None, Outcome]]  # the case of an outcome, where it is of one
Step = Callable[[], list[Outcome]]
# takes a step's key, what came of it should it end the process, and the step; see `at_once`
Attempt = Callable[[str, Outcome, Step], list[Outcome]]


def at_once(key: str, ended: Outcome, step: Step) -> list[Outcome]:
    """Take a step of a verification in this process, which dies where the step crashes it."""
    return step()


def verify(
    backend: Backend | str,
    *,
    device: str = "cpu",
    dtypes: Iterable[str] | None = None,
    cases: Mapping[str, Iterable[Case]] | None = None,
    generated: int = GENERATED,
    seed: int = 0,
    shrink: bool = False,
    once: bool = False,
    attempt: Attempt = at_once,
) -> Report:
    """Hold a backend against the contract.

    Args:
        backend: a record, or the name of a registered one.
        device: the torch device to run on.
        dtypes: those to check; every one the backend claims on this device when None.
        cases: calls by op, such as those of one model, and nothing else; the whole contract when None.
        generated: how many cases to generate for each op and dtype, beside the curated ones of the contract.
        seed: of the random data, and of the generated cases.
        shrink: look for the smallest case that fails in place of the first failing one of each op.
        once: check each call on one set of data only, which is enough for a backend that passed before.
        attempt: takes each step, such as one case. `convbench verify` passes one that survives a step which
            crashes its process; in this process nothing does.

    Raises:
        UnknownName: no backend of that name is registered, or no such op, dtype or device.
        UsageError: another argument that cannot be used.
    """
    if isinstance(backend, str):
        backend = discover().backend(backend)
    wanted = _checked_arguments(backend, device, dtypes, cases, generated)
    outcomes: list[Outcome] = []
    violation = check_integrity(backend)
    if violation is not None:
        return Report(backend.name, (violation,))
    for name in backend.ops if cases is None else ():
        if name not in OPS:
            text = f"it offers an unknown op {name!r}; {choices(name, OPS)}"
            outcomes.append(Outcome(name, name, "", "", "failed", text, cause=text))
    for name, op in OPS.items():
        if name not in backend.ops:
            if cases is None and op.base is None:  # a fused one is no more than two others
                outcomes += [
                    Outcome(name, name, dtype, device, "unsupported", "not offered") for dtype in wanted
                ]
            continue
        if (wrong := check_signature(backend, op)) is not None:
            outcomes.append(wrong)
            continue
        verifier = _Verifier(backend, op, device, seed, attempt, once)
        if cases is not None:
            found: Found = [
                (case, verifier.case(case, dtype)) for dtype in wanted for case in cases.get(name, ())
            ]
        else:
            found = verifier.whole_contract(wanted, generated)
        outcomes += verifier.minimized(found) if shrink else [outcome for _, outcome in found]
    violation = check_integrity(backend)
    outcomes += [violation] if violation is not None else []
    derived = tuple(name for name, op in backend.ops.items() if backward_is_derived(op))
    return Report(backend.name, tuple(outcomes), backend.accuracy, derived)


def _checked_arguments(
    backend: Backend, device: str, dtypes: Any, cases: Any, generated: Any
) -> tuple[str, ...]:
    """The dtypes to check; raises one sentence for an argument that cannot be used."""
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise UnknownName("device", str(device), backend.devices) from None
    if isinstance(dtypes, str):
        raise UsageError(f"dtypes is {dtypes!r}; it takes a list of names, such as [{dtypes!r}]")
    if isinstance(generated, bool) or not isinstance(generated, int) or generated < 0:
        raise UsageError(f"generated is {generated!r}; it takes a number of cases, 0 or more")
    if cases is not None and not isinstance(cases, Mapping):
        raise UsageError(
            f"cases is {cases!r}; it takes calls by op, such as {{'conv2d': [case]}}; how many to generate is the "
            "argument generated"
        )
    for name in cases or ():
        if name not in OPS:
            raise UnknownName("op", str(name), OPS)
    wanted = tuple(backend.dtypes_on(device) if dtypes is None else dtypes)
    for dtype in wanted:
        if dtypes is None and dtype not in DTYPES:
            raise PluginError(
                f"backend {backend.name!r} claims an unknown dtype {dtype!r}; {choices(dtype, DTYPES)}"
            )
        arithmetic(dtype)
    return wanted


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
    once: bool = False,
) -> Outcome:
    """Check an implementation of `op` for what `backend` claims; `once` as for `verify`."""
    numbers, place = arithmetic(dtype), torch.device(device)
    kind = numbers.tensors
    accuracy = backend.accuracy.get(op.name, ELEMENTWISE)

    def outcome(state: State, message: str = "", error: float = 0.0, cause: str = "") -> Outcome:
        python = python_of(backend.name, case, dtype, device, seed) if state in ("failed", "crashed") else ""
        return Outcome(
            op.name, str(case), dtype, device, state, message, error, reproduction=python, cause=cause
        )

    if kind.itemsize < 4:
        # the gradients in between would be rounded to half precision, and torch's own kernels multiply the zeros
        # that they pad with by the infinities
        case = replace(case, order=1, special=False)
    if case.order == 2 and op.name not in backend.second_order:
        return outcome("unsupported", "gradients of gradients are not among its claims (second_order)")
    try:
        with numbers.in_force(), global_state_kept():
            history = History()
            run = partial(run_case, op, implementation, case, numbers, place, history=history)
            repeated = backend.deterministic and not once
            if not repeated and can_refill(case):
                call_once(op, implementation, case, kind, place, seed + 2, history)
            with _poisoned_memory():
                first, error = run(seed, accuracy, refill=not repeated)
            if not once:
                error = max(error, run(seed + 1, accuracy, refill=True, few=True)[1])
            if repeated:
                run(seed, refill=True, known=first)
    except Unsupported as refusal:
        return outcome("unsupported", str(refusal))
    except (Mismatch, IntegrityError) as mismatch:
        cause = getattr(mismatch, "cause", "")
        if (
            cause.endswith(UNKNOWN)
            and backend.deterministic
            and not _repeats(implementation, case, kind, place)
        ):
            cause = NOT_DETERMINISTIC
        return outcome("failed", str(mismatch), cause=cause)
    except (Exception, SystemExit) as crash:  # noqa: BLE001 - a backend's code: anything can come out of it
        cause = crash_cause(crash)
        return replace(outcome("crashed", crash_message(crash), cause=cause), memory=out_of_memory(crash))
    return outcome("passed", error=error)


def _repeats(
    implementation: Callable[..., Any], case: Case, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether two calls with the same arguments have the same output."""
    with torch.no_grad():
        first, second = (implementation(**case.arguments(dtype, device, seed=0)).clone() for _ in range(2))
    return same(first, second)


def check_integrity(backend: Backend) -> Outcome | None:
    """Load the backend; a failure where loading or calling it has changed what it is judged by."""
    try:
        with global_state_kept():
            dict(backend.ops)
        originals().check()
    except IntegrityError as error:
        return Outcome("", "", "", "", "failed", str(error))
    return None


def check_refusal(backend: Backend, op: Op, case: Case, dtype: str, device: str) -> Outcome:
    """Make a call that torch refuses with an exception; the backend must raise one too."""
    arguments = case.arguments(arithmetic(dtype).tensors, torch.device(device), seed=0)
    label = f"{case}, which torch refuses"
    python = python_of(backend.name, case, dtype, device, refused=True)
    answer = partial(Outcome, op.name, label, dtype, device, kind="refusal")
    try:
        backend.ops[op.name](**arguments)
    except Exception as error:  # noqa: BLE001 - any exception is the right answer here
        return answer("passed", describe(error))
    except SystemExit as leaving:
        return answer("crashed", crash_message(leaving), reproduction=python)
    message = "an answer was given where torch raises"
    try:
        op.reference(**arguments)
    except Exception as error:  # noqa: BLE001 - whatever torch says of the call
        message += f" {crash_message(error)}; raise an exception as well"
    return answer("failed", message, reproduction=python)


def _without_types(signature: inspect.Signature) -> str:
    parameters = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(parameters))


def check_signature(backend: Backend, op: Op) -> Outcome | None:
    """A failure where an implementation cannot be called as torch's function."""
    implementation = backend.ops[op.name]
    names = list(op.signature.parameters)
    required = [name for name, each in op.signature.parameters.items() if each.default is each.empty]
    try:
        signature = inspect.signature(implementation, follow_wrapped=False)
    except (TypeError, ValueError):  # of a compiled function
        return None
    try:
        for called_with in (names, required):
            signature.bind(**dict.fromkeys(called_with))
        placed = {} if op.chain else signature.bind(*names).arguments  # as models call it
    except TypeError as error:
        problem = str(error)
    else:
        moved = [name for own, name in placed.items() if own != name and not isinstance(name, tuple)]
        if not moved:
            return None
        problem = f"{moved[0]} has another place among its parameters"
    code = getattr(inspect.unwrap(implementation), "__code__", None)
    where = f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""
    cause = f"it cannot be called as torch's function: write {op.name}{_without_types(op.signature)}"
    return Outcome(op.name, op.name, "", "", "failed", f"{problem}{where}", cause=cause)


@dataclass(frozen=True)
class _Verifier:
    """Verifies one op of a backend, step by step."""

    backend: Backend
    op: Op
    device: str
    seed: int
    attempt: Attempt
    once: bool

    def whole_contract(self, dtypes: tuple[str, ...], generated: int) -> Found:
        """The curated cases and generated ones, what torch refuses, and what torch's own tools say of the op."""
        found: Found = []
        for dtype in dtypes:
            for case in whole_contract(self.backend, self.op.name, generated, self.seed):
                found.append((case, self.case(case, dtype)))
            for case in refused_calls(self.op.name):
                found.append((None, self._refusal(case, dtype)))
        if dtypes and any(outcome.kind == "case" and outcome.state == "passed" for _, outcome in found):
            found += [(None, outcome) for outcome in self._torch(dtypes[0])]
        return found

    def case(self, case: Case, dtype: str, label: str = CASE) -> Outcome:
        """What comes of a case, with the known fault that explains a failure."""
        outcome = self._step(label, case, dtype, self.backend.ops[self.op.name])
        fault = fault_of_case(case, dtype, self.device)
        if fault is None or not self._explains(fault, outcome, case, dtype):
            return outcome
        explained = replace(outcome, known_fault=str(fault))
        if label == CASE:  # a step of its own, so that it is known wherever the verification is cut off
            self.attempt(f"{EXPLAINED} {dtype} {literal(case)}", explained, lambda: [explained])
        return explained

    def _explains(self, fault: KnownFault, outcome: Outcome, case: Case, dtype: str) -> bool:
        """Whether the fault is the reason of a failure, or should have made a case of torch's own op fail."""
        its_own = self.backend.ops[self.op.name]
        torchs_own = its_own is self.op.reference or its_own in self.op.functions
        if not outcome.is_failure:
            return torchs_own and outcome.state == "passed"
        # an excuse only if torch's own answer is wrong too, and the backend's right once the library is out of it
        if can_disable(fault.library) and self._step(SPARED, case, dtype, its_own, fault).is_failure:
            return False
        return torchs_own or self._step(TORCHS, case, dtype, self.op.reference).is_failure

    def minimized(self, found: Found) -> Iterator[Outcome]:
        """The outcomes, the first that fails in each way with the smallest case that fails so."""
        done: list[Outcome] = []
        for case, outcome in found:
            if case is None or not outcome.is_failure or any(outcome.fails_as(other) for other in done):
                yield outcome
                continue
            done.append(outcome)
            yield shrink(outcome, case, partial(self.case, dtype=outcome.dtype, label=SMALLER))

    def _step(
        self,
        label: str,
        case: Case,
        dtype: str,
        implementation: Callable[..., Any],
        spared: KnownFault | None = None,
    ) -> Outcome:
        backend, op = self.backend, self.op

        def step() -> list[Outcome]:
            with disabled(spared.library) if spared is not None else nullcontext():
                return [
                    check_with(backend, implementation, op, case, dtype, self.device, self.seed, self.once)
                ]

        python = python_of(backend.name, case, dtype, self.device, self.seed)
        fault = fault_of_case(case, dtype, self.device)
        hint = f"it is a call of the {fault}" if fault is not None else ""
        ended = self._if_process_ends(str(case), dtype, message=hint, reproduction=python)
        return self.attempt(f"{label} {dtype} {literal(case)}", ended, step)[0]

    def _refusal(self, case: Case, dtype: str) -> Outcome:
        python = python_of(self.backend.name, case, dtype, self.device, refused=True)
        ended = self._if_process_ends(
            f"{case}, which torch refuses", dtype, kind="refusal", reproduction=python
        )
        step = partial(check_refusal, self.backend, self.op, case, dtype, self.device)
        return self.attempt(f"refusal {dtype} {literal(case)}", ended, lambda: [step()])[0]

    def _torch(self, dtype: str) -> list[Outcome]:
        from convbench.registry.integrity.opcheck import check_torch

        ended = self._if_process_ends(f"torch.compile or opcheck of {self.op.name}", dtype, kind="compile")
        step = partial(check_torch, self.backend, self.op.name, dtype, self.device, self.seed)
        return self.attempt(f"torch {dtype} {self.op.name}", ended, lambda: list(step()))

    def _if_process_ends(self, label: str, dtype: str, **rest: Any) -> Outcome:
        return Outcome(self.op.name, label, dtype, self.device, "crashed", ended_process=True, **rest)


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, as torch does for determinism's sake."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with memory_filled(True):
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


originals()  # as they are before any plugin is loaded
