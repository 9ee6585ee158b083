"""Checks that an output does not change after the call, and that it is not the cached one of an earlier call.

The runs of a case share a `History`. Where a run fills the tensors of the run before with new numbers, as an
optimizer does with weights, an answer that is cached by address shows; and after each call, the output of the call
before is compared with the copy that was made of it at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.batch_sampling import restricted_call, sampled
from convbench.registry.conformance.cases import REPEATING, Case
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.contract import Op

GRACE_SECONDS = 0.1  # how long a wrong output is watched for late writes
FAR = 0.1  # of the largest value: more than any rounding error

_now, _sleep = time.monotonic, time.sleep


def can_refill(case: Case) -> bool:
    """Whether the tensors of a case own memory that can be overwritten."""
    return case.layout not in REPEATING and case.weight_layout not in REPEATING


@dataclass
class History:
    """The last call of a case: its arguments, their seed, its output, and a copy made as soon as it returned."""

    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    output: Tensor | None = None
    copy: Tensor | None = None

    def refill(self, fresh: dict[str, Any]) -> dict[str, Any]:
        """The tensors of the last call, filled with the numbers of a new one."""
        with torch.no_grad():
            for name, value in self.arguments.items():
                if isinstance(value, Tensor):
                    value.copy_(fresh[name])  # bumps the version that torch keeps of a tensor
        return self.arguments

    def add(self, arguments: dict[str, Any], seed: int, output: Tensor) -> Tensor:
        """Record a call that has just returned, and return a copy of its output.

        Raises:
            IntegrityError: the output of the last call has changed.
        """
        copy = output.detach().clone()  # at once: what is written later is too late
        if self.output is not None and self.copy is not None and not same(self.output, self.copy):
            raise IntegrityError(
                "the output changed when the op was called again: two outputs share their memory"
            )
        self.arguments, self.seed, self.output, self.copy = arguments, seed, output.detach(), copy
        return copy

    def explain(self, before: History, op: Op, case: Case, sample: Tensor | None, expected: Tensor) -> None:
        """Raise IntegrityError where the last output was written late, or belongs to the call `before`.

        Args:
            before: the history as it was before the last call.
            op: that was called.
            case: that was run.
            sample: the images that are compared.
            expected: what is right for them.
        """
        assert self.output is not None
        assert self.copy is not None
        given = sampled(sample, self.copy)
        if not _differ(given, expected):
            return
        deadline = _now() + GRACE_SECONDS
        while _now() < deadline:
            if not same(self.output, self.copy):
                raise IntegrityError(
                    "the output was still being written after the op had returned: it was not waited for"
                )
            _sleep(0.005)
        if before.output is None:
            return
        earlier = case.arguments(given.dtype, given.device, before.seed)
        if not _differ(given, _reference(op, restricted_call(sample, earlier))):
            where = ", which lay in the same memory" if before.arguments is self.arguments else ""
            raise IntegrityError(f"the output is that of earlier numbers{where}")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _differ(answer: Tensor, expected: Tensor) -> bool:
    """Whether an answer differs from what is expected by more than rounding."""
    if answer.shape != expected.shape or not expected.numel():
        return False
    largest = expected.double().abs().max()
    difference = (answer.double() - expected.double()).abs().max()
    return bool(largest.isfinite()) and not bool(difference <= FAR * largest)


def _reference(op: Op, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        wide = {
            name: value.detach().double() if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        return op.reference(**wide)
