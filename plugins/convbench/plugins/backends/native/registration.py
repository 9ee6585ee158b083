"""The ops as `torch.compile` and export see them: `torch.ops.convbench_native`."""

from __future__ import annotations

from typing import Any, Protocol

import torch

LIBRARY = torch.library.Library("convbench_native", "DEF")
OPS: Any = torch.ops.convbench_native


class Derivative(Protocol):
    """The gradients of an op's arguments from those of its outputs, by calls to functions of the same names."""

    def __call__(self, calls: Any, ctx: Any, *upstream: Any) -> tuple[Any, ...]: ...


def register(schema: str, kernel: Any, fake: Any, derivative: Derivative, setup_context: Any) -> None:
    """Make an op of a kernel.

    Args:
        schema: the op's name and arguments, as torch writes them.
        kernel: what computes it.
        fake: what says the shapes that come out.
        derivative: called with `OPS` first, to stay within what a compiler sees.
        setup_context: as of an `autograd.Function`: keeps what the derivative needs.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"{LIBRARY.ns}::{name}", fake, lib=LIBRARY)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # torch passes these by name
        setup_context(ctx, inputs, output)

    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        return derivative(OPS, ctx, *upstream)

    torch.library.register_autograd(f"{LIBRARY.ns}::{name}", backward, setup_context=keep, lib=LIBRARY)
