"""Ops of torch from functions that launch kernels, each there twice: for eager calls, and as compilers see it.

`torch.ops.convbench_triton` has them by `torch.library.triton_op`: `torch.compile` looks through such an op,
sees the kernel's launch, allocates its output and fuses what is around it. Eager calls take an
`autograd.Function` of the same launch, which costs less than going through the dispatcher twice.

Interpreted kernels are plain Python that computes with numbers: a compiler, whose tensors have none, can see
nothing there. Then each op is opaque, a `torch.library.custom_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.triton.availability import interpreted
from convbench.registry.authoring.torch_library import Derivative, Keep, Registered

REGISTERED = Registered("convbench_triton")
OPS, EAGER, LAUNCHES = REGISTERED.ops, REGISTERED.eager, REGISTERED.kernels


def register(name: str, function: Callable[..., Any], derivative: Derivative, keep: Keep) -> None:
    """Make both ops of a function.

    Args:
        name: of the op.
        function: launches kernels through `launch`; its annotations are the op's schema.
        derivative: of the op.
        keep: called with the context, inputs and outputs, to keep what the derivative needs.
    """
    setup_context, backward = REGISTERED.add_eager(name, function, derivative, keep)
    make: Any = torch.library.custom_op if interpreted() else torch.library.triton_op
    op = make(f"{REGISTERED.namespace}::{name}", function, mutates_args=())
    op.register_fake(function)  # allocates what comes out; `launch` does what it has to
    op.register_autograd(backward, setup_context=setup_context)


def launch(kernel: Any, grid: Any, target: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch a kernel that writes `target`, on its device; where a compiler traces, it records the launch."""
    if type(target) is Tensor:
        with torch.cuda.device_of(target):
            kernel[grid](*arguments, **options)
    elif not interpreted():
        torch.library.wrap_triton(kernel)[grid](*arguments, **options)
