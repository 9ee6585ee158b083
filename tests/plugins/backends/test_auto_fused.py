"""`auto` chooses between the fused op of a backend and the layers apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convbench.plugins.backends.auto import timing
from convbench.plugins.backends.auto.candidates import Candidate
from convbench.registry import OPS, Backend, Unsupported
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
