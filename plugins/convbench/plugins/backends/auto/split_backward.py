"""A convolution whose forward pass and gradients are computed by different backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convbench.registry.authoring.conv_parts import Needs, Parts, torchs_backward

Pair = tuple[int, int]
Options = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups


@dataclass(frozen=True)
class SplitConvolution:
    """A `conv2d` with fixed options.

    Attributes:
        forward: computes the output.
        of_input: the backend parts whose backward computes the gradient of the input.
        of_weight: those whose backward computes the gradients of weight and bias.
        options: stride, padding, dilation and groups.
    """

    forward: Callable[..., Tensor]
    of_input: Parts
    of_weight: Parts
    options: Options

    def __call__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        output: Tensor = _Split.apply(input, weight, bias, self)
        return output

    def gradients(self, grad_output: Tensor, input: Tensor, weight: Tensor, needs: Needs) -> Any:
        """The gradients of input, weight and bias; one call if one backend computes all of them."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # for second-order gradients
            return torchs_backward(grad_output, input, weight, *self.options, needs)
        if self.of_input is self.of_weight or not needs[0]:
            return self.of_weight.backward(grad_output, input, weight, *self.options, needs)
        of_input, _, _ = self.of_input.backward(
            grad_output, input, weight, *self.options, (True, False, False)
        )
        if not (needs[1] or needs[2]):
            return of_input, None, None
        _, of_weight, of_bias = self.of_weight.backward(
            grad_output, input, weight, *self.options, (False, needs[1], needs[2])
        )
        return of_input, of_weight, of_bias


class _Split(Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, split: SplitConvolution
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.split = split
        return split.forward(input, weight, bias, *split.options)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (*ctx.split.gradients(grad_output, input, weight, (needs[0], needs[1], needs[2])), None)
