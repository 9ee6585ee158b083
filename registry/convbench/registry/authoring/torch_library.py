"""Register kernels as torch ops, each twice: for compilers, and for eager calls.

`torch.compile` and export use `torch.ops.NAMESPACE`: whole ops with gradients, and with shapes for tracing. An
eager forward and backward pass through such an op takes 65 us more than the kernel. Through an
`autograd.Function` it takes 26 us, as long as torch's own `relu` (measured on empty kernels). A small network
has a dozen such calls a step, so eager calls use an `autograd.Function`. Its `forward` takes the context: with
a `setup_context` torch would inspect the function's signature at every call, which takes another 30 us.

`opaque` makes such an op of a forward convolution in plain Python or NumPy. Compilers call it without tracing it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


class Derivative(Protocol):
    """The gradients of an op's arguments from those of its outputs, by calls of ops of the same library."""

    def __call__(self, calls: Any, ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]: ...


Kernel = Callable[..., Any]
Keep = Callable[[Any, tuple[Any, ...], Any], None]


class Registered:
    """The ops of one namespace.

    Attributes:
        ops: as `torch.ops.NAMESPACE` has them.
        eager: functions of the same names, with gradients.
        kernels: the functions that compute them, without gradients.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.ops: Any = getattr(torch.ops, namespace)
        self.eager: Any = SimpleNamespace()
        self.kernels: Any = SimpleNamespace()

    def add(self, schema: str, kernel: Kernel, fake: Kernel, derivative: Derivative, keep: Keep) -> None:
        """Make both ops of a kernel.

        Args:
            schema: the op's name and arguments, as torch writes them.
            kernel: computes the op.
            fake: allocates its outputs from the shapes of its arguments, for tracing.
            derivative: of the op.
            keep: called with the context, inputs and outputs, to keep what the derivative needs.
        """
        registered, name = self, schema.partition("(")[0]

        class Eager(Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = kernel(*inputs)
                keep(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: Any, *grad_outputs: Any) -> Any:
                gradients = [*map(_in_memory, grad_outputs)]
                calls = registered.eager if torch.is_grad_enabled() else registered.kernels
                if not all(map(has_memory, gradients)):
                    calls = registered.ops
                return derivative(calls, ctx, *gradients)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # torch passes names
            keep(ctx, inputs, output)

        def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
            return derivative(registered.ops, ctx, *grad_outputs)

        setattr(self.kernels, name, kernel)
        setattr(self.eager, name, Eager.apply)
        self.define(schema, kernel, fake, backward, setup_context)

    def define(self, schema: str, kernel: Kernel, fake: Kernel, backward: Any, setup_context: Any) -> None:
        """Register the op with torch."""
        raise NotImplementedError


def _in_memory(gradient: Tensor | None) -> Tensor | None:
    """A gradient whose memory holds its numbers: torch has some with a negative bit, and zeros without memory."""
    odd = gradient is not None and (gradient.is_neg() or gradient._is_zerotensor())
    return gradient.clone() if odd else gradient  # type: ignore[union-attr]


def has_memory(gradient: Tensor | None) -> bool:
    """Whether a kernel can read it; not where it stands for many (`is_grads_batched`, `torch.func.vmap`)."""
    return gradient is None or torch.compiler.is_compiling() or torch._C._has_storage(gradient)


class Library(Registered):
    """A namespace whose ops are defined by a schema and computed on one kind of device."""

    def __init__(self, namespace: str, device_type: str) -> None:
        super().__init__(namespace)
        self._library = torch.library.Library(namespace, "FRAGMENT")
        self._key = device_type.upper()

    def define(self, schema: str, kernel: Kernel, fake: Kernel, backward: Any, setup_context: Any) -> None:
        name = schema.partition("(")[0]
        qualified = f"{self.namespace}::{name}"
        self._library.define(schema)
        self._library.impl(name, kernel, self._key)
        torch.library.register_fake(qualified, fake, lib=self._library)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=self._library)


Pair = tuple[int, int]
Forward = Callable[[Tensor, Tensor, Tensor | None, Pair, Pair, Pair, int], Tensor]

SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)
_numbers = itertools.count()  # two forwards may have the same name


def opaque(forward: Forward) -> Forward:
    """The same forward, registered with torch; its output is a new tensor, contiguous, (N, O, H', W')."""

    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        options = _pair(stride), _pair(padding), _pair(dilation), groups
        with torch.no_grad():  # as where it is called without a compiler
            return forward(input, weight, bias, *options).contiguous()

    op = torch.library.custom_op(
        f"convbench::derived_{next(_numbers)}", convolution, mutates_args=(), schema=SCHEMA
    )
    op.register_fake(lambda *arguments: F.conv2d(*arguments).contiguous())
    return op


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return first, second
