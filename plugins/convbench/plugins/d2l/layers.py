"""Layers of the chapter: convolution by a backend's op, and locally connected layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry import Backend, discover
from convbench.registry.ops.window import IntPair, pair


class Conv2D(nn.Module):
    """A kernel and a scalar bias over one image, as in section 7.2: (H, W) -> (H', W').

    `backend` is a record or the name of a registered one. Its `conv2d` computes the layer, and raises
    `Unsupported` for kernels that it does not support.

    Raises:
        ValueError: a kernel size below 1.
    """

    def __init__(self, kernel_size: IntPair, backend: Backend | str = "loops") -> None:
        super().__init__()
        _at_least(1, kernel_size=pair(kernel_size, "kernel_size"))
        self.backend = discover().backend(backend) if isinstance(backend, str) else backend
        self.weight = nn.Parameter(torch.rand(pair(kernel_size, "kernel_size")))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.backend.ops["conv2d"](image[None, None], self.weight[None, None], self.bias)
        return output[0, 0]

    def extra_repr(self) -> str:
        return f"kernel_size={tuple(self.weight.shape)}, backend={self.backend.name!r}"


class LocallyConnected2d(nn.Module):
    """Convolution without weight sharing: every output position has a separate kernel and bias.

    Section 7.1's second step, locality without translation invariance (LeCun, "Generalization and network
    design strategies", 1989). It has H'·W' times the parameters of the convolution.

    Attributes:
        weight: (H', W', O, C, kh, kw); `weight[i, j]` is the kernel of one position.
        bias: (H', W', O), or None.

    Raises:
        ValueError: a kernel that is larger than the padded input, or a size, stride or padding out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: IntPair,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.input_size = pair(input_size, "input_size")
        self.stride, self.padding = pair(stride, "stride"), pair(padding, "padding")
        taps = pair(kernel_size, "kernel_size")
        _at_least(1, kernel_size=taps, stride=self.stride, channels=(in_channels, out_channels))
        _at_least(0, padding=self.padding)
        room = [
            size + 2 * pad - tap for size, pad, tap in zip(self.input_size, self.padding, taps, strict=True)
        ]
        if min(room) < 0:
            raise ValueError(f"a kernel of {taps} is larger than the padded input of {self.input_size}")
        height, width = (space // step + 1 for space, step in zip(room, self.stride, strict=True))
        self.weight = nn.Parameter(torch.empty(height, width, out_channels, in_channels, *taps))
        self.bias = nn.Parameter(torch.empty(height, width, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as Glorot and Bengio (2010) for one convolution, and biases as torch does."""
        _, _, filters, channels, kh, kw = self.weight.shape
        limit = math.sqrt(6 / ((channels + filters) * kh * kw))
        nn.init.uniform_(self.weight, -limit, limit)
        if self.bias is not None:
            limit = 1 / math.sqrt(channels * kh * kw)
            nn.init.uniform_(self.bias, -limit, limit)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W').

        Raises:
            ValueError: images of another size than `input_size`, or of other channels.
        """
        height, width, filters, channels, kh, kw = self.weight.shape
        down, across = self.input_size
        if tuple(input.shape[1:]) != (channels, down, across):
            raise ValueError(f"images must be (N, {channels}, {down}, {across}), not {tuple(input.shape)}")
        patches = F.unfold(input, (kh, kw), padding=self.padding, stride=self.stride)  # (N, C·kh·kw, H'·W')
        kernels = self.weight.flatten(3).flatten(0, 1)  # (H'·W', O, C·kh·kw)
        output = torch.einsum("nkp,pok->nop", patches, kernels).view(len(input), filters, height, width)
        return output if self.bias is None else output + self.bias.permute(2, 0, 1)

    def extra_repr(self) -> str:
        height, width, filters, channels, kh, kw = self.weight.shape
        return (
            f"{channels}, {filters}, input_size={self.input_size}, kernel_size={(kh, kw)}, "
            f"stride={self.stride}, padding={self.padding}, output_size={(height, width)}"
        )


def _at_least(least: int, **sizes: tuple[int, int]) -> None:
    for name, values in sizes.items():
        if min(values) < least:
            raise ValueError(f"{name} must be {least} or more, not {values}")
