"""Candidates of `auto` that take as long as a test says, and a clock that they alone move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.plugins.backends.auto import dispatch
from convbench.plugins.backends.auto.candidates import Candidate
from convbench.plugins.backends.auto.decisions import Decision
from convbench.plugins.backends.auto.dispatch import Decisions, Dispatched
from convbench.plugins.backends.auto.signature import Call, call_of
from convbench.plugins.backends.auto.tuner import choose
from convbench.registry import OPS, Backend, Unsupported

SHAPES = (16, 3, 12, 12), (8, 3, 3, 3)  # large enough to be timed


class Clock:
    """A clock that only these candidates move, so that no test hangs on what else the machine does."""

    READING = 1e-4  # seconds that pass whenever it is read

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += self.READING
        return self.seconds


CLOCK = Clock()


def candidate(name: str, conv2d: Callable[..., Any] = F.conv2d, **rest: Any) -> Candidate:
    ops = {"conv2d": conv2d}
    return Candidate(name, Backend(name, f"the {name} one", lambda: ops, **rest), "1.0", "of this test")


def named(*candidates: Candidate) -> dict[str, Candidate]:
    return {each.name: each for each in candidates}


def taking(seconds: float) -> Callable[..., Tensor]:
    """A convolution of so many seconds."""

    def conv2d(*args: Any, **kwargs: Any) -> Tensor:
        CLOCK.seconds += seconds
        return F.conv2d(*args, **kwargs)

    return conv2d


slow = taking(0.002)


def wrong(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs) * 1.01


def wrong_backwards(input: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
    return F.conv2d(input, weight * 2 - weight.detach(), *rest, **more)


def raising(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("out of order")


def refusing(*_: Any, **__: Any) -> Tensor:
    raise Unsupported("on principle")


def misbehaving(*args: Any, **kwargs: Any) -> Tensor:
    torch.set_num_threads(torch.get_num_threads() + 1)
    return F.conv2d(*args, **kwargs)


def of_another_shape(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs)[..., 1:]


def arguments(needs: Iterable[str] = ("input", "weight", "bias")) -> dict[str, Any]:
    tensors = {"input": torch.randn(SHAPES[0]), "weight": torch.randn(SHAPES[1]), "bias": torch.randn(8)}
    for name in needs:
        tensors[name].requires_grad_()
    return tensors | {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def call(**changes: Any) -> Call:
    """The call that is made with such arguments."""
    values = tuple((arguments() | changes).values())
    return call_of(OPS["conv2d"], dispatch._seen(values, -4))


def dispatched(
    candidates: Mapping[str, Candidate],
    root: Path,
    chooser: Callable[..., Decision] = choose,
    op: str = "conv2d",
) -> Dispatched:
    return Dispatched(OPS[op], Decisions(lambda: candidates, root, chooser))


class Told:
    """Chooses what it is told to, and counts."""

    def __init__(self, decision: Decision) -> None:
        self.decision, self.calls = decision, []  # type: ignore[var-annotated]

    def __call__(self, call: Call, candidates: Mapping[str, Candidate]) -> Decision:
        self.calls.append(call)
        return self.decision
