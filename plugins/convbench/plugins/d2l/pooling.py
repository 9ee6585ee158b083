"""Pooling of a single image as defined (Dive into Deep Learning, 7.5), and stochastic pooling.

Stochastic pooling draws one activation of each window, with a probability in proportion to its value: large
activations win most of the time, which regularises like dropout. In evaluation it takes the mean of the window,
weighted by the same probabilities. Zeiler and Fergus, "Stochastic pooling for regularization of deep convolutional
neural networks" (2013).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry.ops.window import IntPair, pair, pool2d_window

_MODES: dict[str, Callable[[Tensor], Tensor]] = {"max": torch.max, "avg": torch.mean}


def pool2d(image: Tensor, pool_size: IntPair, mode: Literal["max", "avg"] = "max") -> Tensor:
    """The largest or the mean value under the window: (H, W) -> (H - ph + 1, W - pw + 1).

    Raises:
        ValueError: another mode, or a window that is empty or larger than the image.
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be 'max' or 'avg', not {mode!r}")
    if image.dim() != 2:
        raise ValueError(f"pool2d takes one image (H, W), not {tuple(image.shape)}")
    (height, width), (ph, pw) = image.shape, pair(pool_size, "pool_size")
    if min(ph, pw) < 1:
        raise ValueError(f"a window of {ph}x{pw} has no pixels")
    if ph > height or pw > width:
        raise ValueError(f"a window of {ph}x{pw} is larger than the image of {height}x{width}")
    value = _MODES[mode]
    rows = [
        torch.stack([value(image[i : i + ph, j : j + pw]) for j in range(width - pw + 1)])
        for i in range(height - ph + 1)
    ]
    return torch.stack(rows)


def stochastic_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One value for each window: (N, C, H, W) -> (N, C, H', W').

    A window of zeros gives zero, without a gradient. Padding is never drawn.

    Args:
        input: activations of 0 or more, as after a ReLU. Checking them synchronises a CUDA device.
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

    A uniform number is looked up in the running sum. A value of zero adds nothing to the sum and is never drawn.
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
