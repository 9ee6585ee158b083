"""Checks that an output does not change after the call, and that it is not the cached one of an earlier call.

The runs of a case share a `History`. Where a run puts new numbers into the tensors of the run before, as an
optimizer does with weights, an answer that is cached by address shows. Where it replaces only a few of them, and
the version that torch keeps of a tensor stays the same, one that is cached by version or by a checksum does. After
each call, the output of the call before is compared with the copy that was made of it at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.batch_sampling import sampled
from convbench.registry.conformance.cases import REPEATING, Case
from convbench.registry.integrity.monkeypatch_guard import IntegrityError

GRACE_SECONDS = 0.1  # how long a wrong output is watched for late writes
FEW = 64  # of so many numbers one is replaced
FAR = 0.1  # of the largest value: more than any rounding error

_now, _sleep = time.monotonic, time.sleep


def can_refill(case: Case) -> bool:
    """Whether the tensors of a case own memory that can be overwritten."""
    return case.layout not in REPEATING and case.weight_layout not in REPEATING


@dataclass
class History:
    """The last call of a case: its arguments, its output, and a copy made as soon as it returned."""

    arguments: dict[str, Any] = field(default_factory=dict)
    output: Tensor | None = None
    copy: Tensor | None = None

    def refill(self, fresh: dict[str, Any], seed: int, few: bool) -> dict[str, Any]:
        """The tensors of the last call, filled with the numbers of a new one; with `few`, only here and there."""
        generator = torch.Generator().manual_seed(
            seed + fresh["input"].numel()
        )  # other places in other cases
        for name, value in self.arguments.items():
            if isinstance(value, Tensor) and few:
                chosen = torch.rand(value.shape, generator=generator).to(value.device) < 1 / FEW
                value.data.copy_(torch.where(chosen, fresh[name], value.data))  # the version stays the same
            elif isinstance(value, Tensor):
                value.detach().copy_(fresh[name])
        return self.arguments

    def add(self, arguments: dict[str, Any], output: Tensor) -> Tensor:
        """Record a call that has just returned, and return a copy of its output.

        Raises:
            IntegrityError: the output of the last call has changed.
        """
        copy = output.detach().clone()  # at once: what is written later is too late
        if self.output is not None and self.copy is not None and not same(self.output, self.copy):
            raise IntegrityError(
                "the output changed when the op was called again: two outputs share their memory"
            )
        self.arguments, self.output, self.copy = arguments, output.detach(), copy
        return copy

    def explain(self, before: History, sample: Tensor | None, expected: Tensor) -> None:
        """Raise IntegrityError where the last output was written late, or belongs to the call `before`.

        Args:
            before: the history as it was before the last call.
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
        # one number everywhere, or none, says nothing of where it is from
        varied = bool(given.isfinite().all() and given.min() != given.max())
        if before.copy is not None and varied and not _differ(given, sampled(sample, before.copy)):
            where = ", which lay in the same memory" if before.arguments is self.arguments else ""
            raise IntegrityError(f"the output is that of earlier numbers{where}")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _differ(answer: Tensor, expected: Tensor) -> bool:
    """Whether an answer differs from what is expected by more than rounding; of zeros nothing is known."""
    if answer.shape != expected.shape or not expected.numel():
        return False
    largest = expected.double().abs().max()
    difference = (answer.double() - expected.double()).abs().max()
    return bool(largest.isfinite() and largest > 0) and not bool(difference <= FAR * largest)
