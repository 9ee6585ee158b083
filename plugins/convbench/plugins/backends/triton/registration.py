"""Ops of torch from functions that launch kernels, each there twice: for eager calls, and as compilers see it.

`torch.ops.convbench_triton` has them by `torch.library.triton_op`: `torch.compile` looks through such an op,
sees the kernel's launch, allocates its output and fuses what is around it. Eager calls take an
`autograd.Function` of the same launch, which costs less than going through the dispatcher twice.

Interpreted kernels are plain Python that computes with numbers: a compiler, whose tensors have none, can see
nothing there. Then each op is opaque, a `torch.library.custom_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from convbench.plugins.backends.triton.availability import interpreted

NAMESPACE = "convbench_triton"
OPS: Any = torch.ops.convbench_triton
EAGER: Any = SimpleNamespace()  # functions of the same names
LAUNCHES: Any = SimpleNamespace()  # and without a gradient, where nobody asks for one


class Derivative(Protocol):
    """The gradients of an op's arguments from those of its outputs, by calls of `OPS`, `EAGER` or `LAUNCHES`."""

    def __call__(self, calls: Any, ctx: Any, *upstream: Any) -> tuple[Any, ...]: ...


Keep = Callable[[Any, tuple[Any, ...], Any], None]


def register(name: str, function: Callable[..., Any], derivative: Derivative, keep: Keep) -> None:
    """Make both ops of a function.

    Args:
        name: of the op.
        function: launches kernels through `launch`; its annotations are the op's schema.
        derivative: of the op.
        keep: called with the context, inputs and outputs, to keep what the derivative needs.
    """
    setattr(LAUNCHES, name, function)
    setattr(EAGER, name, _eager(function, derivative, keep))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # torch passes these by name
        keep(ctx, inputs, output)

    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        return derivative(OPS, ctx, *upstream)

    make: Any = torch.library.custom_op if interpreted() else torch.library.triton_op
    op = make(f"{NAMESPACE}::{name}", function, mutates_args=())
    op.register_fake(function)  # allocates what comes out; `launch` does what it has to
    op.register_autograd(backward, setup_context=setup_context)


def _eager(function: Callable[..., Any], derivative: Derivative, keep: Keep) -> Callable[..., Any]:
    class Eager(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            keep(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            return derivative(EAGER if torch.is_grad_enabled() else LAUNCHES, ctx, *upstream)

    apply: Callable[..., Any] = Eager.apply
    return apply


def launch(kernel: Any, grid: Any, target: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch a kernel that writes `target`, on its device; where a compiler traces, it records the launch."""
    if type(target) is Tensor:
        with torch.cuda.device_of(target):
            kernel[grid](*arguments, **options)
    elif not interpreted():
        torch.library.wrap_triton(kernel)[grid](*arguments, **options)
