"""Outputs lie where inputs do, whatever the default device and dtype and the modes of the program are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from convbench.registry import Backend, discover
from cpu_backends import names


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "with meta": lambda: torch.device("meta"),
    "default device meta": lambda: default_device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}
CALLS: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "conv2d": (((2, 3, 9, 9), (4, 3, 3, 3), (4,)), {"padding": 1}),
    "max_pool2d": (((2, 3, 9, 9),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool2d": (((2, 3, 9, 9),), {"kernel_size": 3, "stride": 2, "padding": 1}),
}


def answers(backend: Backend, op: str) -> list[Tensor]:
    """The output, gradients of first order, and of second order where it has them."""
    shapes, options = CALLS[op]
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
    leaves = [each.requires_grad_() for each in drawn]
    output = backend.ops[op](*leaves, **options)
    if not output.requires_grad:
        return [output]
    gradients = torch.autograd.grad(output.square().sum(), leaves, create_graph=op in backend.second_order)
    if op not in backend.second_order:
        return [output, *gradients]
    total = sum(gradient.square().sum() for gradient in gradients)
    return [output, *gradients, *torch.autograd.grad(total, leaves)]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in names() if name != "auto"])
def test_answers_are_the_same_in_every_mode(name: str, mode: str) -> None:
    backend = discover().backend(name)
    for op in CALLS.keys() & backend.ops.keys():
        wanted = answers(backend, op)
        with MODES[mode]():
            given = answers(backend, op)
        for one, other in zip(given, wanted, strict=False):
            assert (one.device.type, one.dtype) == ("cpu", torch.float32), op
            assert torch.allclose(one, other, atol=1e-5), op  # a product may be another one without gradients
