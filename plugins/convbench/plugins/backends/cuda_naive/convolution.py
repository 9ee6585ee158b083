"""Launch the kernels of `naive.cu`, with one thread for each number that they write."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.compiler import Program, element
from convbench.plugins.backends.cuda.driver import Argument, Launch, Machine
from convbench.plugins.backends.cuda.kernel_arguments import Shape

THREADS = 256


class Geometry(ctypes.Structure):
    """As in `naive.cu`."""

    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in (
            "images", "channels", "height", "width", "filters", "rows", "columns", "kernel_h", "kernel_w",
            "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups",
        )
    )  # fmt: skip

    @classmethod
    def of(cls, shape: Shape) -> Geometry:
        sizes = shape.images, shape.channels, *shape.size, shape.filters, *shape.output
        return cls(*sizes, *shape.kernel, *shape.stride, *shape.padding, *shape.dilation, shape.groups)


@dataclass(frozen=True)
class Convolution:
    """The kernels of `conv2d`, on contiguous tensors."""

    machine: Machine

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
        output = input.new_empty((shape.images, shape.filters, *shape.output))
        self._launch("conv2d", shape, output, input, weight, bias)
        return output

    def input_gradient(self, grad_output: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        """(N, O, H', W'), (O, C/groups, kh, kw) -> (N, C, H, W)."""
        gradient = grad_output.new_empty((shape.images, shape.channels, *shape.size))
        self._launch("conv2d_input_gradient", shape, gradient, grad_output, weight)
        return gradient

    def weight_gradient(
        self, grad_output: Tensor, input: Tensor, shape: Shape, with_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """(N, O, H', W'), (N, C, H, W) -> (O, C/groups, kh, kw) of the weight, and (O,) of the bias."""
        gradient = grad_output.new_empty((shape.filters, shape.channels // shape.groups, *shape.kernel))
        of_bias = grad_output.new_empty(shape.filters)
        self._launch("conv2d_weight_gradient", shape, gradient, grad_output, input)
        if with_bias:
            self._launch("conv2d_bias_gradient", shape, of_bias, grad_output)
        return gradient, of_bias

    def _launch(self, kernel: str, shape: Shape, written: Tensor, *read: Argument) -> None:
        """A thread for each number that is written, which is the kernel's last argument."""
        if written.numel():
            grid = (-(-written.numel() // THREADS), 1, 1)
            arguments = Geometry.of(shape), *read, written
            launch = Launch(naive_program(written.dtype), kernel, grid, THREADS, 0, arguments)
            self.machine.launch(written.device, launch)


@cache
def naive_program(dtype: torch.dtype) -> Program:
    return Program(Path(__file__).with_name("naive.cu"), (("ELEMENT", element(dtype)),))
