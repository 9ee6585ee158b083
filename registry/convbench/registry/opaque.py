"""A forward convolution as `torch.compile` should see it: one op that is called, and not looked into.

The compiler traces Python, and NumPy as well, and neither C nor every trick of NumPy's can be traced. An op that
is registered with torch stays whole in the compiled graph, whatever it is written in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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
