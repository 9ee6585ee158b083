"""`auto` chooses between the fused op of a backend and the layers apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.plugins.backends.auto import timing
from convbench.plugins.backends.auto.candidates import Candidate
from convbench.registry import OPS, Backend, Unsupported, use_backend
from timed_candidates import (
    CLOCK,
    SHAPES,
    arguments,
    candidate,
    dispatched,
    named,
    slow,
    taking,
)

FUSED = "conv2d_activation_avg_pool2d"


@pytest.fixture(autouse=True)
def _our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_now", CLOCK)


def stage_of(seconds: float) -> Callable[..., Tensor]:
    """A stage as one op, of so many seconds."""

    def stage(*args: Any, **kwargs: Any) -> Tensor:
        CLOCK.seconds += seconds
        return OPS[FUSED].reference(*args, **kwargs)

    return stage


def with_stage(name: str, seconds: float, conv2d: Callable[..., Any]) -> Candidate:
    ops = {"conv2d": conv2d, FUSED: stage_of(seconds)}
    return Candidate(name, Backend(name, f"the {name} one", lambda: ops), "1.0", "of this test")


@pytest.mark.parametrize(
    ("of_a_stage", "of_a_convolution", "winner"),
    [(0.001, 0.002, "fusing"), (0.004, 0.0005, "apart"), (0.02, 0.02, "torch")],
)
def test_a_stage_is_one_call_or_its_layers_apart(
    tmp_path: Path, of_a_stage: float, of_a_convolution: float, winner: str
) -> None:
    baseline = with_stage("torch", 0.003, taking(0.003))
    fusing = with_stage("fusing", of_a_stage, taking(of_a_convolution))
    op = dispatched(named(baseline, fusing), tmp_path, op=FUSED)
    given = {**arguments(), "activation": "tanh", "kernel_size": 2, "pool_stride": None}
    torch.testing.assert_close(op(**given), OPS[FUSED].reference(**given))
    assert set(op.choices().values()) == {winner}
    before = CLOCK.seconds
    op(**given)
    assert CLOCK.seconds - before == pytest.approx(min(of_a_stage, of_a_convolution, 0.003))


def test_torch_has_the_layers_of_a_stage(tmp_path: Path) -> None:
    """Its record has no fused op, and the other candidate has no backend for one either."""
    op = dispatched(named(candidate("torch"), candidate("other")), tmp_path, op=FUSED)
    given = {**arguments(), "activation": "relu", "kernel_size": 2, "pool_stride": None}
    torch.testing.assert_close(op(**given), OPS[FUSED].reference(**given))


def test_a_stage_for_whole_batches_alone_takes_part(tmp_path: Path) -> None:
    """As those with images along the lanes, which refuse the single image that is tried first."""

    def for_batches(input: Tensor, *rest: Any, **more: Any) -> Tensor:
        if len(input) < SHAPES[0][0]:
            raise Unsupported("few images")
        return stage_of(0.001)(input, *rest, **more)

    ops = {FUSED: for_batches}
    batches = Candidate("batches", Backend("batches", "", lambda: ops), "1.0", "of this test")
    op = dispatched(named(with_stage("torch", 0.003, slow), batches), tmp_path, op=FUSED)
    op(**{**arguments(), "activation": "relu", "kernel_size": 2, "pool_stride": None})
    assert set(op.choices().values()) == {"batches"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_to_the_layers(dtype: torch.dtype, tmp_path: Path) -> None:
    """In between torch would round, and the largest number of a window could be another one."""
    op = dispatched(named(with_stage("torch", 0.003, slow)), tmp_path, op=FUSED)
    given = {**arguments(), "activation": "relu", "kernel_size": 2, "pool_stride": None}
    halves = {name: each.to(dtype) if isinstance(each, Tensor) else each for name, each in given.items()}
    with pytest.raises(Unsupported, match="half precision"):
        op(**halves)


# --- any number of layers -----------------------------------------------------------------------------------

LAYERS = (
    ("conv2d_activation_max_pool2d", 1, 1, 1, 1, "relu", 1, None),
    (FUSED, 1, 0, 1, 1, "tanh", 2, None),
    ("flatten",),
    ("linear", "none"),
)


def network() -> tuple[Tensor, ...]:
    shapes = (16, 3, 12, 12), (8, 3, 3, 3), (8,), (4, 8, 3, 3), (4,), (5, 100), (5,)
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


def with_network(name: str, of_all: float, of_a_stage: float) -> Candidate:
    def taking(op: str, seconds: float) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            CLOCK.seconds += seconds
            return OPS[op].reference(*args, **kwargs)

        return call

    stages = {op: taking(op, of_a_stage) for op in (FUSED, "conv2d_activation_max_pool2d")}
    ops = {**stages, "conv2d": slow, "sequential": taking("sequential", of_all)}
    return Candidate(name, Backend(name, f"the {name} one", lambda: ops), "1.0", "of this test")


@pytest.mark.parametrize(
    ("of_all", "of_a_stage", "winner"),
    [(0.001, 0.001, "fusing"), (0.004, 0.0005, "apart"), (0.02, 0.02, "torch")],
)
def test_layers_are_one_call_or_apart(tmp_path: Path, of_all: float, of_a_stage: float, winner: str) -> None:
    some = named(with_network("torch", 0.003, 0.003), with_network("fusing", of_all, of_a_stage))
    op = dispatched(some, tmp_path, op="sequential")
    tensors = network()
    output, right = op(*tensors, layers=LAYERS), OPS["sequential"].reference(*tensors, layers=LAYERS)
    torch.testing.assert_close(output, right)
    weights = torch.randn_like(right)
    for one, other in zip(
        torch.autograd.grad(output, tensors, weights),
        torch.autograd.grad(right, tensors, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert set(op.choices().values()) == {winner}
    before = CLOCK.seconds
    op(*tensors, layers=LAYERS)
    assert CLOCK.seconds - before == pytest.approx(min(of_all, 2 * of_a_stage, 0.003))


def test_parameters_by_name_are_the_same_call(tmp_path: Path) -> None:
    op = dispatched(named(with_network("torch", 0.004, 0.004)), tmp_path, op="sequential")
    input, weight0, bias0, *_ = network()
    output = op(input, weight0=weight0, bias0=bias0, layers=LAYERS[:1])
    torch.testing.assert_close(output, op(input, weight0, bias0, layers=LAYERS[:1]))
    assert len(op.choices()) == 1


def test_fewer_images_are_decided_as_more(tmp_path: Path) -> None:
    """The last batch of an epoch is not worth timing."""
    some = named(with_network("torch", 0.004, 0.004), with_network("fusing", 0.001, 0.001))
    op = dispatched(some, tmp_path, op="sequential")
    input, *parameters = network()
    op(input, *parameters, layers=LAYERS)
    op(input[:7], *parameters, layers=LAYERS)
    assert set(op.choices().values()) == {"fusing"}
    assert len(op.choices()) == 2


def test_a_network_is_described_by_its_shapes_and_layers(tmp_path: Path) -> None:
    op = dispatched(named(with_network("torch", 0.004, 0.004)), tmp_path, op="sequential")
    op(*network(), layers=LAYERS)
    (text,) = op.choices()
    assert text == (
        "sequential 16x3x12x12 * 8x3x3x3 * 4x8x3x3 * 5x100 layers=conv2d_activation_max_pool2d, "
        "conv2d_activation_avg_pool2d, flatten, linear"
    )


def test_a_network_of_layers_with_lists_is_routed() -> None:
    """`nn.MaxPool2d` keeps a list as it is, and lists cannot be looked up."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d([2, 2]),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.AvgPool2d([2, 2], [1, 2]),
    )
    images = torch.randn(16, 1, 16, 16)
    torch.testing.assert_close(use_backend(model, "native", fuse=True)(images), model(images))
