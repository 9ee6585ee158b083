"""Ops of torch from kernels, each there twice: one for eager calls, and one as compilers see it.

`torch.ops.convbench_native` is what `torch.compile` and export take: whole ops, with shapes for tracing and
gradients. Called eagerly, a forward and backward pass through such an op takes 65 us beside the kernel's own time;
through an `autograd.Function` it is 26 us, as much as torch's own `relu` (measured on empty kernels), and a small
network has a dozen such calls a step. So eager calls take the latter. Its `forward` takes the context: with a
`setup_context` torch inspects the function's signature at every call, for 30 us more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch.autograd import Function

LIBRARY = torch.library.Library("convbench_native", "DEF")
OPS: Any = torch.ops.convbench_native
EAGER: Any = SimpleNamespace()  # functions of the same names
KERNELS: Any = SimpleNamespace()  # and the kernels themselves, where nobody asks for a gradient


class Derivative(Protocol):
    """The gradients of an op's arguments from those of its outputs, by calls of `OPS`, `EAGER` or `KERNELS`."""

    def __call__(self, calls: Any, ctx: Any, *upstream: Any) -> tuple[Any, ...]: ...


Keep = Callable[[Any, tuple[Any, ...], Any], None]


def register(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], derivative: Derivative, keep: Keep
) -> None:
    """Make both ops of a kernel.

    Args:
        schema: the op's name and arguments, as torch writes them.
        kernel: what computes it.
        fake: what says the shapes that come out.
        derivative: of the op.
        keep: called with the context, inputs and outputs, to keep what the derivative needs.
    """
    name = schema.partition("(")[0]
    setattr(KERNELS, name, kernel)
    setattr(EAGER, name, _eager(kernel, derivative, keep))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # torch passes these by name
        keep(ctx, inputs, output)

    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        return derivative(OPS, ctx, *upstream)

    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"{LIBRARY.ns}::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"{LIBRARY.ns}::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )


def _eager(kernel: Callable[..., Any], derivative: Derivative, keep: Keep) -> Callable[..., Any]:
    class Eager(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = kernel(*inputs)
            keep(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            return derivative(EAGER if torch.is_grad_enabled() else KERNELS, ctx, *upstream)

    apply: Callable[..., Any] = Eager.apply
    return apply
