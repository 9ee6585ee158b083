"""Steps under audit: honest backends pass on every kind of layer and number, others do not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry import Backend, Unsupported, discover, use_backend
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.integrity.step_audit import Call, StepAudit

BACKENDS = {
    name: backend
    for name, backend in discover(installed=()).backends.items()
    if backend.unavailable() is None and name != "loops"
}


class Residual(nn.Module):
    """Two uses of one tensor, an in-place activation, and a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x), inplace=True)
        return F.avg_pool2d(self.second(y) + x, 3, 2, 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        Residual(),
        nn.Conv2d(4, 8, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def step(model: nn.Module, backend: Backend, images: Tensor) -> list[Call]:
    audit = StepAudit(backend)
    routed = use_backend(model, audit.backend)
    with audit.watching():
        F.cross_entropy(routed(images), torch.arange(len(images)) % 10).backward(retain_graph=True)
        audit.check_gradients()
    return audit.calls


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_honest_backend_passes_on_images(backend: str, scale: float) -> None:
    """Images are no numbers of mean zero, for which the bounds of verification hold."""
    images = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(1)) * scale
    calls = step(network(), BACKENDS[backend], images)
    assert sum(call.served for call in calls) > 0
    assert [call.case.op for call in calls if call.case.op == "conv2d"] == ["conv2d"] * 4


HALVES = ("bfloat16", "float16")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", ["im2col", "torch"])
def test_an_honest_backend_passes_in_half_precision(backend: str, dtype: str) -> None:
    kind = getattr(torch, dtype)
    images = torch.rand(64, 1, 20, 20, generator=torch.Generator().manual_seed(1)).to(kind)
    assert step(network().to(kind), BACKENDS[backend], images)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("factor", [0.0, 0.9])
def test_sums_of_many_positions_hide_nothing_in_half_precision(dtype: str, factor: float) -> None:
    """A weight's gradient is a sum over all positions and may err by much; an output is not."""
    kind = getattr(torch, dtype)
    images = torch.rand(64, 1, 20, 20, generator=torch.Generator().manual_seed(1)).to(kind)
    with pytest.raises(IntegrityError, match="the output is"):
        step(network().to(kind), spoilt(lambda output: output * factor), images)


def test_a_sum_beyond_half_precision_excuses_that_sum_alone() -> None:
    """Gradients of weights that overflow say nothing of the input's."""

    def conv2d(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return F.conv2d(input.detach() + 0.5 * (input - input.detach()), weight, *args, **kwargs)

    layer = nn.Conv2d(2, 2, 1).half()
    images = torch.full((64, 2, 8, 8), 6e4, dtype=torch.float16, requires_grad=True)
    with torch.no_grad():
        layer.weight.mul_(0.01)
    halved = Backend("halved", "half the gradient of its input", lambda: {"conv2d": conv2d}, dtypes=HALVES)
    audit = StepAudit(halved)
    with audit.watching():
        use_backend(layer, audit.backend)(images).sum().backward(retain_graph=True)
        with pytest.raises(IntegrityError, match="the gradient of input is"):
            audit.check_gradients()


def test_gradients_are_those_of_an_ordinary_step() -> None:
    images = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    plain, watched = network(), network()
    F.cross_entropy(plain(images), torch.arange(6)).backward()
    step(watched, BACKENDS["torch"], images)
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def spoilt(change: Callable[[Tensor], Tensor]) -> Backend:
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = F.conv2d(input, weight, *args, **kwargs)
        return change(output) if isinstance(weight, nn.Parameter) else output

    return Backend(
        "spoilt", "right for plain tensors", lambda: {"conv2d": conv2d}, dtypes=("float32", *HALVES)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda output: output * 1.001, "the output is .* times the largest admissible error"),
        (lambda output: output.bfloat16().float(), "the output is"),
        (lambda output: output.detach(), "the output is cut off from the gradient"),
        (lambda output: output.detach() + 0.5 * (output - output.detach()), "the gradient of weight is"),
        (lambda output: output[..., :-1], "the output has shape"),
    ],
)
def test_what_is_right_for_plain_tensors_alone_is_caught(
    change: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(IntegrityError, match=words):
        step(network(), spoilt(change), torch.rand(6, 1, 20, 20))


def test_refusals_are_kept_apart_and_go_on() -> None:
    def declines(*args: Any, **kwargs: Any) -> Tensor:
        raise Unsupported("not today")

    calls = step(
        network(), Backend("declines", "none", lambda: {"conv2d": declines}), torch.rand(6, 1, 20, 20)
    )
    assert [call.served for call in calls] == [False] * 4


def test_numbers_beyond_all_bounds_are_nobodys_fault() -> None:
    images = torch.full((6, 1, 20, 20), float("inf"))
    assert step(network(), BACKENDS["im2col"], images)


def spoilt_gradient(change: Callable[[Tensor], Tensor]) -> Backend:
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: Tensor) -> Tensor:
            return output.clone()

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            return change(grad_output)

    def conv2d(*args: Any, **kwargs: Any) -> Tensor:
        return Spoilt.apply(F.conv2d(*args, **kwargs))  # type: ignore[no-any-return]

    return Backend("spoilt", "right for some gradients", lambda: {"conv2d": conv2d})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda gradient: gradient.std() < 0.5,  # those of a mean over a batch are small, random ones are not
        lambda gradient: gradient.std() > 0.5,
        lambda gradient: (
            not bool((gradient == 0).all(dim=-1).any())
        ),  # whole rows without a gradient are right
    ],
)
def test_gradients_are_checked_for_what_really_comes_in_and_for_random_numbers(
    wrong: Callable[[Tensor], bool],
) -> None:
    backend = spoilt_gradient(lambda gradient: gradient * (0.5 if wrong(gradient) else 1.0))
    with pytest.raises(IntegrityError, match=r"the gradient of .* is"):
        step(network(), backend, torch.rand(6, 1, 20, 20))


def test_a_backend_has_the_same_callers_whether_it_is_watched_or_not() -> None:
    stacks: list[list[Any]] = []

    def conv2d(*args: Any, **kwargs: Any) -> Tensor:
        frame, stack = sys._getframe(1), []
        while frame is not None:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]
        stacks.append(stack)
        return F.conv2d(*args, **kwargs)

    audit = StepAudit(Backend("looks", "at its callers", lambda: {"conv2d": conv2d}))
    routed, images = use_backend(network(), audit.backend), torch.rand(6, 1, 20, 20)
    for watching in (audit.watching, nullcontext):
        with watching():
            for _ in range(1):
                routed(images)
    plain, watched = stacks[:4], stacks[4:]
    assert plain == watched
