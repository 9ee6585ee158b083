"""Does an answer stay what it was, and is it an answer to what lies in memory now?

Verification hands every call tensors of its own. Here the same tensors are filled with new numbers between two
calls, as an optimizer does with weights, and the first answer is looked at again after the second call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convbench.registry.cases import Case
from convbench.registry.few_images import call_of, few_images, of
from convbench.registry.layouts import REPEATING
from convbench.registry.ops import Op
from convbench.registry.tampering import Misconduct

GRACE_SECONDS = 0.1  # how long a wrong answer is watched: does it become another one?
FAR = 0.1  # of the largest value: as far as no rounding takes an answer

_now, _sleep = time.monotonic, time.sleep


def can_last(case: Case) -> bool:
    """Whether the tensors of a case have memory of their own that can be filled anew, and numbers throughout."""
    return case.layout not in REPEATING and case.weight_layout not in REPEATING and not case.special


def check_lasting(
    op: Op,
    implementation: Callable[..., Any],
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> None:
    """Call an op twice, on other numbers in the same memory.

    Raises:
        Misconduct: the first output changed afterwards, or the second is an answer to the first call.
    """
    arguments = case.arguments(dtype, device, seed)
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    leaves = [arguments[name].requires_grad_() for name in tensors]
    first = implementation(**arguments)
    if (
        not isinstance(first, Tensor)
        or first.shape[:1] != arguments["input"].shape[:1]
        or _shares_memory(first, leaves)
    ):
        return  # wrong in a way that is found elsewhere
    taken = first.detach().clone()  # at once: what is written later is too late
    few = few_images(op, arguments, seed)
    expected = _reference(op, call_of(few, arguments))
    if _differ(of(few, taken), expected):
        _watch(first, taken)

    fresh = case.arguments(dtype, device, seed + 1)
    with torch.no_grad():
        for name in tensors:
            arguments[name].copy_(fresh[name])  # bumps the version that torch keeps of a tensor
    second = implementation(**arguments)
    if not same(first.detach(), taken):
        raise Misconduct("the output changed when the op was called again: two outputs share their memory")
    given = of(few, second.detach())
    if _differ(given, expected):
        return
    renewed = _reference(op, call_of(few, arguments))
    if _differ(renewed, expected) and _differ(given, renewed):
        raise Misconduct("the output is that of earlier numbers, which lay in the same memory")


def _watch(output: Tensor, taken: Tensor) -> None:
    """Wait a moment, and raise Misconduct where the output becomes another one."""
    deadline = _now() + GRACE_SECONDS
    while _now() < deadline:
        if not same(output.detach(), taken):
            raise Misconduct(
                "the output was still being written after the op had returned: it was not waited for"
            )
        _sleep(0.005)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _shares_memory(output: Tensor, inputs: list[Tensor]) -> bool:
    own = output.untyped_storage().data_ptr()
    return any(own == each.untyped_storage().data_ptr() for each in inputs)


def _differ(answer: Tensor, expected: Tensor) -> bool:
    """Whether an answer is another one altogether."""
    if answer.shape != expected.shape or not expected.numel():
        return False
    difference = (answer.double() - expected.double()).abs().max()
    return not bool(difference <= FAR * expected.double().abs().max())


def _reference(op: Op, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        wide = {
            name: value.detach().double() if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        return op.reference(**wide)
