"""Of a large call a few images are compared, and what is wrong in one of them, or in all, still shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import Backend
from convbench.registry.conformance import batch_sampling as module
from convbench.registry.conformance.batch_sampling import sample_images, scattered, unsampled
from convbench.registry.conformance.cases import Case, conv2d, pool
from convbench.registry.conformance.report import Outcome
from convbench.registry.conformance.verify import check
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.integrity.step_audit import StepAudit
from convbench.registry.ops.contract import OPS

LARGE = conv2d((40, 2, 9, 9), (3, 2, 3, 3), padding=1)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORK", 1e5)


def backend(conv: Callable[..., Tensor]) -> Backend:
    return Backend("planted", "for a test", lambda: {"conv2d": conv, "max_pool2d": F.max_pool2d})


def outcome(conv: Callable[..., Tensor], case: Case = LARGE) -> Outcome:
    return check(backend(conv), OPS[case.op], case, "float32", "cpu")


def arguments(case: Case = LARGE) -> dict[str, Any]:
    return case.arguments(torch.float32, torch.device("cpu"), seed=0)


def test_the_first_the_last_and_some_between_without_repetition() -> None:
    sample = sample_images(OPS["conv2d"], arguments(), seed=0)
    assert sample is not None
    assert 4 <= len(sample) < 40
    assert {0, 39} < set(sample.tolist())
    assert sample.tolist() == sorted(set(sample.tolist()))
    assert sample_images(OPS["conv2d"], arguments(), seed=1).tolist() != sample.tolist()  # type: ignore[union-attr]


def test_a_small_call_is_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert sample_images(OPS["conv2d"], arguments(), seed=0) is None
    large = {"input": torch.empty(128, 16, 56, 56, device="meta")}
    large["weight"] = torch.empty(32, 16, 3, 3, device="meta")
    sample = sample_images(OPS["conv2d"], large, seed=0)
    assert sample is not None
    assert len(sample) == 9  # 128 images by 2.5e8 of 3.44e9 operations


def test_the_rest_of_a_gradient_is_zero() -> None:
    sample = torch.tensor([0, 2])
    masked = scattered(sample, torch.ones(len(sample), 1), 4)
    assert masked.flatten().tolist() == [1, 0, 1, 0]
    assert unsampled(sample, torch.arange(4)).tolist() == [1, 3]


@pytest.mark.parametrize("case", [LARGE, pool("max_pool2d", (200, 3, 20, 20), kernel_size=2)])
def test_a_right_one_passes(case: Case) -> None:
    assert sample_images(OPS[case.op], arguments(case), seed=0) is not None
    assert outcome(F.conv2d, case).state == "passed"


def spoiled_output(input: Tensor, *rest: Any, **options: Any) -> Tensor:
    output = F.conv2d(input, *rest, **options)
    return torch.cat([output[:-1], output[-1:] * 1.01])


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is 1 % too large."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * 1.01


def spoiled_weight(input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    return F.conv2d(input, _Scaled.apply(weight), *rest, **options)


class _Leaking(torch.autograd.Function):
    """The identity, whose gradient reaches the neighbouring image too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output + grad_output.roll(1, 0) * 0.5


def leaking_input(input: Tensor, *rest: Any, **options: Any) -> Tensor:
    return F.conv2d(_Leaking.apply(input), *rest, **options)


@pytest.mark.parametrize("conv", [spoiled_output, spoiled_weight, leaking_input])
def test_what_is_wrong_shows(conv: Callable[..., Tensor]) -> None:
    assert outcome(conv).state == "failed"


def test_a_gradient_where_there_is_none_is_named() -> None:
    assert "in images whose outputs have none" in outcome(leaking_input).message


@pytest.mark.parametrize("conv", [spoiled_output, spoiled_weight])
def test_a_step_under_audit_shows_it_too(conv: Callable[..., Tensor]) -> None:
    def check(conv: Callable[..., Tensor]) -> None:
        audit = StepAudit(backend(conv))
        with audit.watching():
            assert audit.backend.ops["conv2d"](**call).shape == (40, 3, 9, 9)
            audit.check_gradients()

    call = arguments()
    call["weight"].requires_grad_()
    check(F.conv2d)
    with pytest.raises(IntegrityError, match="times the largest admissible error"):
        check(conv)
