"""Register functions that launch Triton kernels, for eager calls and for compilers.

The ops in `torch.ops.convbench_triton` are made by `torch.library.triton_op`: `torch.compile` traces into them,
sees the launch, allocates the output and fuses what is around it. Eager calls use an `autograd.Function` of the
same launch, which takes less time than two passes through the dispatcher.

Interpreted kernels compute with numbers, and the tensors of a compiler have none. So under the interpreter each
op is opaque: a `torch.library.custom_op`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.triton import interpreted
from convbench.registry.authoring.torch_library import Kernel, Registered


class TritonLibrary(Registered):
    """A namespace whose ops launch Triton kernels, through `launch`."""

    def define(self, schema: str, kernel: Kernel, fake: Kernel, backward: Any, setup_context: Any) -> None:
        name, parenthesis, signature = schema.partition("(")
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
