"""Sizes and options that are degenerate, huge or of other types: every backend answers as torch does, or refuses.

A call that goes wrong here does not fail, it ends the process or takes all memory. So they are made in a process
of their own, one after the other, each reported before it is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import Unsupported, discover
from cpu_backends import names

MILLION, INT, LONG = 10**6, 2**31 - 1, 2**63 - 1
HUGE = (MILLION, INT, INT + 1, 2**40, 2**62, LONG)
BEYOND = (LONG + 1, 2**64 + 1, -(2**70))
NOT_WHOLE = (True, None, 2.0, "2")
GIGABYTES = 8  # of address space, beside what torch takes
SECONDS = 240
TORCHS = (
    "torch",
    "auto",
)  # torch computes small calls of `auto`, too; its gradients of huge strides take for ever


# --- the calls ------------------------------------------------------------------------------------------------

Call = tuple[
    str, dict[str, Any], str, Callable[..., Tensor] | None
]  # op, arguments, in words, an ordinary equal


def conv(equal: Callable[..., Tensor] | None = None, n: int = 2, c: int = 3, **options: Any) -> Call:
    shapes = options.pop("input", (n, c, 9, 9)), options.pop("weight", (4, 3, 3, 3))
    tensors = {"input": shapes[0], "weight": shapes[1]}
    if shapes[1][1]:
        tensors["bias"] = shapes[1][:1]
    return "conv2d", tensors | options, f"conv2d {shapes} {options}", equal


def pool(op: str, equal: Callable[..., Tensor] | None = None, **options: Any) -> Call:
    shape = options.pop("input", (2, 3, 9, 9))
    return f"{op}_pool2d", {"input": shape} | options, f"{op}_pool2d {shape} {options}", equal


def calls() -> Iterator[Call]:
    """All of them: what torch answers has an equal to be held against, the others torch refuses."""
    for weight in ((0, 3, 3, 3), (4, 3, 0, 3), (4, 3, 11, 3), (4, 2, 3, 3), (4, 1, 3, 3)):
        yield conv(weight=weight)
    for shape in ((2, 3, 0, 9), (2, 3, 9, 0)):
        yield conv(input=shape)
        yield conv(input=shape, padding=2)
        yield pool("max", input=shape, kernel_size=2)
        yield pool("avg", input=shape, kernel_size=2)
    yield conv(input=(2, 0, 9, 9), weight=(0, 0, 3, 3))
    yield conv(F.conv2d, input=(0, 3, 9, 9))
    yield conv(_nothing, input=(2, 0, 9, 9), weight=(4, 0, 3, 3))
    for groups in (0, -1, 2, 3, 2**40, 2**62, *BEYOND, *NOT_WHOLE):
        yield conv(groups=groups)
    for name in ("stride", "dilation"):
        for value in (0, -1, -(2**62), (), (1, 1, 1), (1, 0), *BEYOND, *NOT_WHOLE):
            yield conv(**{name: value})
    for value in (-1, (0, -1), -(2**62), *BEYOND, *NOT_WHOLE):
        yield conv(padding=value)
    for value in HUGE:
        yield conv(lambda x, w, b: F.conv2d(x[..., :3, :3], w, b), stride=value)
        yield conv(lambda x, w, b: F.conv2d(x[..., :3, :], w, b, (1, 2)), stride=(value, 2))
        yield conv(F.conv2d, weight=(4, 3, 1, 1), dilation=value)
        if value < 2**61:
            yield conv(
                lambda x, w, b: F.conv2d(x, w[..., 1:2, 1:2], b), padding=value, dilation=value
            )  # the kernel's middle
            yield conv(_middle, padding=value, stride=value)
        yield conv(weight=(4, 3, 2, 2), dilation=value)
    for op in ("max", "avg"):
        for name in ("kernel_size", "stride", "padding", *(("dilation",) if op == "max" else ())):
            for value in (-1, -(2**62), 2**40, 2**62, *BEYOND, True, 2.0, "2"):
                yield pool(op, **{"kernel_size": 2} | {name: value})
        yield pool(op, kernel_size=0)
        yield pool(op, kernel_size=2, stride=0)
        yield pool(op, kernel_size=10)
        yield pool(op, kernel_size=2, padding=2)
        yield pool(op, kernel_size=MILLION)
        yield pool(op, input=(2, 0, 9, 9), kernel_size=2)
        plain = F.max_pool2d if op == "max" else F.avg_pool2d
        yield pool(op, lambda x, f=plain: f(x, 2), input=(0, 3, 9, 9), kernel_size=2)
        for value in (MILLION, INT):
            yield pool(op, lambda x, f=plain: f(x[..., :2, :2], 2), kernel_size=2, stride=value)
            yield pool(
                op, lambda x, f=plain: f(x[..., :2, :2], 2), kernel_size=2, stride=value, ceil_mode=True
            )
    for value in (MILLION, 2 * MILLION):
        yield pool("max", lambda x: F.max_pool2d(x, 9), kernel_size=value, padding=value // 2)
        yield pool("max", lambda x: F.max_pool2d(x, 9), kernel_size=value, stride=value, ceil_mode=True)
        yield pool(
            "avg",
            lambda x: F.avg_pool2d(x, 9),
            kernel_size=value,
            padding=value // 2,
            stride=value,
            count_include_pad=False,
        )
    yield pool("max", lambda x: F.max_pool2d(x, 1), kernel_size=1, dilation=INT)
    for value in (0, *BEYOND, True, 1.5, "2"):
        yield pool("avg", kernel_size=2, divisor_override=value)
    for value in (-2, 2**62, np.int64(3)):
        yield pool(
            "avg",
            lambda x, d=int(value): F.avg_pool2d(x, 2, divisor_override=d),
            kernel_size=2,
            divisor_override=value,
        )
    two, one = np.int64(2), np.int32(1)
    yield conv(
        lambda x, w, b: F.conv2d(x, w, b, 2, 1), stride=two, padding=one, dilation=(one, one), groups=one
    )
    yield pool("max", lambda x: F.max_pool2d(x, 2), kernel_size=two, stride=(two, two), dilation=one)


def calls_of(name: str) -> list[Call]:
    """Those that a backend is asked; of torch itself, not the one that it answers otherwise."""
    return [call for call in calls() if name not in TORCHS or call[3] is not _nothing]


def _nothing(x: Tensor, w: Tensor) -> Tensor:
    """Sums of no channels; torch 2.14 answers with an output of no filters."""
    return (x.sum() + w.sum()).expand(2, 4, 7, 7)


def _middle(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """With a padding as large as the stride, only the middle one of nine windows sees pixels."""
    middle = F.conv2d(x[..., :3, :3], w, b)
    return F.pad(middle - b[:, None, None], (1, 1, 1, 1)) + b[:, None, None]


def tensors(arguments: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    generator = torch.Generator("cpu").manual_seed(0)
    of_op = [name for name in ("input", "weight", "bias") if name in arguments]
    drawn = [torch.randn(arguments[name], generator=generator).requires_grad_() for name in of_op]
    return drawn, {name: value for name, value in arguments.items() if name not in of_op}


def outcome(implementation: Callable[..., Tensor], call: Call, gradients_too: bool) -> str:
    """`as torch`, or in words what differs."""
    _, arguments, _, equal = call
    leaves, options = tensors(arguments)
    try:
        given = implementation(*leaves, **options)
    except Unsupported:
        return "as torch"
    except Exception as error:  # noqa: BLE001 - whatever a backend refuses with
        return "as torch" if equal is None else f"{type(error).__name__}: {error}"[:300]
    if equal is None:
        return f"answers {tuple(given.shape)} where torch refuses"
    wanted = equal(*leaves)
    if given.shape != wanted.shape or not torch.allclose(given, wanted, atol=1e-4):
        return f"another answer than torch's: {tuple(given.shape)}, {tuple(wanted.shape)}"
    if given.numel() and gradients_too:
        gradients = torch.autograd.grad(given.sum(), leaves, allow_unused=True)
        right = torch.autograd.grad(wanted.sum(), leaves, allow_unused=True)
        for one, other, leaf in zip(gradients, right, leaves, strict=True):
            one, other = (torch.zeros_like(leaf) if each is None else each for each in (one, other))
            if not torch.allclose(one, other, atol=1e-3):
                return "another gradient than torch's"
    return "as torch"


def make_calls(backends: list[str]) -> None:
    """Make all calls on these backends, and print each before it is made, and what came of it."""
    import resource

    torch.set_num_threads(1)
    for name in backends:
        ops = discover().backend(name).ops
        if name == backends[0]:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
            limit = taken + GIGABYTES * 2**30
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for call in calls_of(name):
            if call[0] in ops:
                print(json.dumps([name, call[2]]), flush=True)
                print(json.dumps(outcome(ops[call[0]], call, name not in TORCHS)), flush=True)


@cache
def outcomes() -> dict[str, dict[str, str]]:
    """What came of every call, by backend; of a call that ended the process, that it did."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the limit of memory is Linux's")
    found: dict[str, dict[str, str]] = {name: {} for name in names()}
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parents[1])!r}]; import {__name__} as here; "
    )
    command = [sys.executable, "-c", code + f"here.make_calls({names()!r})"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    for place in range(0, len(lines), 2):
        name, call = lines[place]
        ending = f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"
        found[name][call] = lines[place + 1] if place + 1 < len(lines) else ending
    return found


@pytest.mark.parametrize("name", names())
def test_it_answers_as_torch_or_refuses(name: str) -> None:
    made = outcomes()[name]
    wrong = {call: came for call, came in made.items() if came != "as torch"}
    assert not wrong, "\n".join(f"{call}: {came}" for call, came in wrong.items())
    backend = discover().backend(name)
    assert len(made) == len({call[2] for call in calls_of(name) if call[0] in backend.ops})
