"""Checks that an output does not change after the call, and that it is not the cached one of an earlier call.

Other checks give every call its own tensors. Here the same tensors are filled with new numbers between two calls,
as an optimizer does with weights, and the first output is compared with its copy after the second call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.batch_sampling import restricted_call, sample_images, sampled
from convbench.registry.conformance.cases import REPEATING, Case
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.contract import Op

GRACE_SECONDS = 0.1  # how long a wrong output is watched for late writes
FAR = 0.1  # of the largest value: more than any rounding error

_now, _sleep = time.monotonic, time.sleep


def can_check_aliasing(case: Case) -> bool:
    """Whether the tensors of a case own memory that can be overwritten, and hold finite numbers only."""
    return case.layout not in REPEATING and case.weight_layout not in REPEATING and not case.special


def check_aliasing(
    op: Op,
    implementation: Callable[..., Any],
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> None:
    """Call an op twice, with different numbers in the same memory.

    Raises:
        IntegrityError: the first output changed afterwards, or the second is an answer to the first call.
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
        return  # other checks report this
    taken = first.detach().clone()  # at once: what is written later is too late
    sample = sample_images(op, arguments, seed)
    expected = _reference(op, restricted_call(sample, arguments))
    if _differ(sampled(sample, taken), expected):
        _watch(first, taken)

    fresh = case.arguments(dtype, device, seed + 1)
    with torch.no_grad():
        for name in tensors:
            arguments[name].copy_(fresh[name])  # bumps the version that torch keeps of a tensor
    second = implementation(**arguments)
    if not same(first.detach(), taken):
        raise IntegrityError(
            "the output changed when the op was called again: two outputs share their memory"
        )
    given = sampled(sample, second.detach())
    if _differ(given, expected):
        return
    renewed = _reference(op, restricted_call(sample, arguments))
    if _differ(renewed, expected) and _differ(given, renewed):
        raise IntegrityError("the output is that of earlier numbers, which lay in the same memory")


def _watch(output: Tensor, taken: Tensor) -> None:
    """Wait a moment, and raise IntegrityError where the output becomes another one."""
    deadline = _now() + GRACE_SECONDS
    while _now() < deadline:
        if not same(output.detach(), taken):
            raise IntegrityError(
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
    """Whether an answer differs from what is expected by more than rounding."""
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
