"""Ops of torch from kernels that run on a `Machine`, each there twice: for eager calls, and as compilers see it.

As for `native`: `torch.ops.NAMESPACE` is what `torch.compile` and export take, whole ops with shapes for tracing
and gradients; eager calls go through an `autograd.Function`, which costs less than half of that. Two backends
share this file, and the tests make more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function


class Derivative(Protocol):
    """The gradients of an op's arguments from those of its outputs, by calls of ops of the same library."""

    def __call__(self, calls: Any, ctx: Any, *upstream: Any) -> tuple[Any, ...]: ...


Keep = Callable[[Any, tuple[Any, ...], Any], None]


class Registered:
    """The ops of one namespace.

    Attributes:
        ops: as `torch.ops.NAMESPACE` has them.
        eager: functions of the same names, with gradients.
        kernels: what computes them, where nobody asks for a gradient.
    """

    def __init__(self, namespace: str, device_type: str) -> None:
        self._library = torch.library.Library(namespace, "FRAGMENT")
        self._key = device_type.upper()
        self.ops: Any = getattr(torch.ops, namespace)
        self.eager: Any = SimpleNamespace()
        self.kernels: Any = SimpleNamespace()

    def add(
        self,
        schema: str,
        kernel: Callable[..., Any],
        fake: Callable[..., Any],
        derivative: Derivative,
        keep: Keep,
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
        setattr(self.kernels, name, kernel)
        setattr(self.eager, name, self._eager(kernel, derivative, keep))

        def setup_context(
            ctx: Any, inputs: tuple[Any, ...], output: Any
        ) -> None:  # torch passes these by name
            keep(ctx, inputs, output)

        def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
            return derivative(self.ops, ctx, *upstream)

        qualified = f"{self._library.ns}::{name}"
        self._library.define(schema)
        self._library.impl(name, kernel, self._key)
        torch.library.register_fake(qualified, fake, lib=self._library)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=self._library)

    def _eager(self, kernel: Callable[..., Any], derivative: Derivative, keep: Keep) -> Callable[..., Any]:
        registered = self

        class Eager(Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = kernel(*inputs)
                keep(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: Any, *upstream: Any) -> Any:
                calls = registered.eager if torch.is_grad_enabled() else registered.kernels
                return derivative(calls, ctx, *upstream)

        apply: Callable[..., Any] = Eager.apply
        return apply


def keep(ctx: Any, tensors: tuple[Tensor, ...], options: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = options
