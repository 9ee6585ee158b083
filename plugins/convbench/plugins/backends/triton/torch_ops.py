"""Registration of functions that launch Triton kernels, for eager calls and for compilers.

`torch.ops.convbench_triton` has the ops, made by `torch.library.triton_op`: `torch.compile` looks into such an op,
sees the launch, allocates its output and fuses what is around it. Eager calls use an `autograd.Function` of the
same launch, which costs less than going through the dispatcher twice.

Interpreted kernels compute with numbers, in Python, and a compiler's tensors have none. Under the interpreter each
op is therefore opaque: a `torch.library.custom_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.triton import interpreted
from convbench.registry.authoring.torch_library import Derivative, Keep, Registered


class TritonLibrary(Registered):
    """A namespace whose ops launch Triton kernels, through `launch`."""

    def add(
        self,
        schema: str,
        kernel: Callable[..., Any],
        fake: Callable[..., Any],
        derivative: Derivative,
        keep: Keep,
    ) -> None:
        name, parenthesis, signature = schema.partition("(")
        setup_context, backward = self.add_eager(name, kernel, derivative, keep)
        make: Any = torch.library.custom_op if interpreted() else torch.library.triton_op
        op = make(f"{self.namespace}::{name}", kernel, mutates_args=(), schema=parenthesis + signature)
        op.register_fake(fake)
        op.register_autograd(backward, setup_context=setup_context)


LIBRARY = TritonLibrary("convbench_triton")


OFFSETS = 2**30  # from which offsets need 64 bits: half of what 32 hold, since masked lanes reach beyond


def wide(*tensors: Tensor) -> bool:
    """Whether 32 bits are too few for an offset into one of them."""
    return any(
        sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        >= OFFSETS
        for tensor in tensors
    )


def launch(kernel: Any, grid: Any, target: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch a kernel that writes `target`, on its device; under a compiler's tracing, record the launch."""
    if type(target) is Tensor:
        with torch.cuda.device_of(target):
            kernel[grid](*arguments, **options)
    elif not interpreted():
        torch.library.wrap_triton(kernel)[grid](*arguments, **options)
