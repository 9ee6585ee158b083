"""Stochastic pooling: one activation of each window, drawn with a probability in proportion to its value.

Zeiler and Fergus, "Stochastic pooling for regularization of deep convolutional neural networks" (2013): large
activations win mostly, others sometimes, which regularises as dropout does. In evaluation the window's mean
is taken, weighted by the same probabilities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry.ops.window import IntPair, pool2d_window


def stochastic_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One value for each window: (N, C, H, W) -> (N, C, H', W').

    A window of zeros gives zero; nothing is drawn from it, and no gradient goes back to it. Padding is never
    drawn.

    Args:
        input: activations, none negative, as after a ReLU. They are checked, which waits for a CUDA device.
        kernel_size: of the window.
        stride: `kernel_size` when None.
        padding: rows and columns of zeros on each side, at most half of `kernel_size`.
        training: draw, and pass the gradient to what was drawn; the weighted mean otherwise.
        generator: to draw with, on the input's device; torch's global one when None.

    Raises:
        ValueError: a negative or infinite activation or NaN, or a window that does not fit.
    """
    window = pool2d_window(input, kernel_size, stride, padding)
    if not bool(((input >= 0) & (input < torch.inf)).all()):
        raise ValueError("stochastic pooling needs finite activations of 0 or more; put a ReLU before it")
    images = F.pad(input, window.pad)
    windows = images.unfold(2, window.kernel_size[0], window.stride[0])
    values = windows.unfold(3, window.kernel_size[1], window.stride[1]).flatten(-2)  # (N, C, H', W', kh·kw)
    with torch.no_grad():
        largest = values.amax(dim=-1, keepdim=True)
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    shares = values / scale  # at most 1, whose sums cannot overflow
    if not training:
        weighted = (shares * probabilities(shares)).sum(dim=-1)
        return weighted * scale.squeeze(-1)
    with torch.no_grad():
        drawn = draw(shares, generator)
    return values.gather(-1, drawn).squeeze(-1).masked_fill(largest.squeeze(-1) == 0, 0.0)


def probabilities(values: Tensor) -> Tensor:
    """Each value's share of its window, (..., taps); zeros for a window of zeros."""
    total = values.sum(dim=-1, keepdim=True)
    return values / torch.where(total > 0, total, torch.ones_like(total))


def draw(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """The index of one tap per window, drawn by its share: (..., taps) -> (..., 1).

    A uniform number is looked up in the running sum; a value of zero adds nothing to it and is never met.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    running = values.cumsum(dim=-1, dtype=wide)
    total = running[..., -1:]
    uniform = torch.rand(total.shape, dtype=wide, device=values.device, generator=generator)
    return (running <= uniform * total).sum(dim=-1, keepdim=True).clamp_(max=values.shape[-1] - 1)


class StochasticPool2d(nn.Module):
    """`stochastic_pool2d` as a layer: draws in training mode, takes the weighted mean in evaluation."""

    def __init__(self, kernel_size: IntPair, stride: IntPair | None = None, padding: IntPair = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_pool2d(input, self.kernel_size, self.stride, self.padding, self.training)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
