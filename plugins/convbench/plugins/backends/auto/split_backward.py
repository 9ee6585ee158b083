"""A convolution whose forward, input gradient and weight gradient may come from three backends."""

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
class Mixture:
    """Who computes what; it takes what the op does, whose options are known beforehand.

    Attributes:
        forward: called where no gradient is recorded.
        of_input: whose backward has the gradient of the input.
        of_weight: whose backward has those of weight and bias.
        options: of the call.
    """

    forward: Callable[..., Tensor]
    of_input: Parts
    of_weight: Parts
    options: Options

    def __call__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        output: Tensor = _Mixed.apply(input, weight, bias, self)
        return output

    def gradients(self, upstream: Tensor, input: Tensor, weight: Tensor, needs: Needs) -> Any:
        """Of input, weight and bias; whoever has both is asked once."""
        if (
            torch.is_grad_enabled() and not torch.compiler.is_compiling()
        ):  # they are to be differentiated in turn
            return torchs_backward(upstream, input, weight, *self.options, needs)
        if self.of_input is self.of_weight or not needs[0]:
            return self.of_weight.backward(upstream, input, weight, *self.options, needs)
        of_input, _, _ = self.of_input.backward(upstream, input, weight, *self.options, (True, False, False))
        if not (needs[1] or needs[2]):
            return of_input, None, None
        _, of_weight, of_bias = self.of_weight.backward(
            upstream, input, weight, *self.options, (False, needs[1], needs[2])
        )
        return of_input, of_weight, of_bias


class _Mixed(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, mixture: Mixture) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.mixture = mixture
        return mixture.forward(input, weight, bias, *mixture.options)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (*ctx.mixture.gradients(upstream, input, weight, (needs[0], needs[1], needs[2])), None)
