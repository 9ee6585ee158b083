"""A convolution in parts: its forward and its gradients as plain functions, outside of autograd.

The gradients of a convolution need the incoming gradient, the input and the weight, and nothing else that a
forward could have kept. So one backend's forward goes with another's gradients, and a backend whose implementation
of `conv2d` has its parts as an attribute `parts` can be taken piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
Needs = tuple[bool, bool, bool]  # the gradients that are wanted: of input, weight and bias
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Parts:
    """The parts of a `conv2d`. `torch.compile` must be able to take both.

    Attributes:
        forward: takes the arguments of the op; it is called if no gradient is needed.
        backward: `(grad_output, input, weight, stride, padding, dilation, groups, needs) -> gradients`, with pairs
            of ints for stride, padding and dilation; a gradient that is not needed may be None.
    """

    forward: Callable[..., Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Pair, Pair, Pair, int, Needs], Gradients]


def torchs_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    needs: Needs,
) -> Gradients:
    """The gradients as torch's own convolution has them; differentiable in turn."""
    gradients: Gradients = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight,
        [weight.shape[0]],
        stride,
        padding,
        dilation,
        False,  # not transposed
        [0, 0],
        groups,
        needs,
    )
    return gradients


TORCHS = Parts(torch.conv2d, torchs_backward)


def parts_of(implementation: Callable[..., Any]) -> Parts | None:
    """The parts of an implementation of `conv2d`; None where it is to be taken whole."""
    if implementation is torch.conv2d:
        return TORCHS
    parts = getattr(implementation, "parts", None)
    return parts if isinstance(parts, Parts) else None
