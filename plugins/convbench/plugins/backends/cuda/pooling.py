"""The launches of `pooling.cu`: with the window's numbers compiled in for `cuda`, and without for `cuda_naive`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.compiler import Program, element, program
from convbench.plugins.backends.cuda.driver import Argument, Launch, Machine
from convbench.registry import Unsupported

THREADS = 256
Pair = Sequence[int]


class _Pooling(ctypes.Structure):
    """As in `pooling.cu`; `Window` lies flat in it."""

    _fields_ = (
        ("planes", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("height", "width", "rows", "columns")),
        ("window", ctypes.c_int * 8),
        ("count_padding", ctypes.c_int),
        ("divisor", ctypes.c_int),
    )


@dataclass(frozen=True)
class Pooling:
    """The kernels of `max_pool2d` and `avg_pool2d`; `fixed` compiles one for each window."""

    machine: Machine
    fixed: bool

    def largest(
        self, input: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the largest values (N, C, H', W'), and their places in their windows, 16 bits each."""
        input = input.contiguous()
        output = input.new_empty((*input.shape[:2], *size))
        places = torch.empty(output.shape, dtype=torch.int16, device=input.device)
        window = (*kernel, *stride, *padding, *dilation)
        self._launch("max_pool2d", input, output, output, window, (0, 0), (input, output, places))
        return output, places

    def largest_gradient(
        self,
        grad_output: Tensor,
        places: Tensor,
        size: Pair,
        channels_last: bool,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        """(N, C, H', W') -> (N, C, H, W): every value added to the place that was chosen."""
        gradient = grad_output.new_empty((*grad_output.shape[:2], *size))
        window = (*kernel, *stride, *padding, *dilation)
        tensors = grad_output.contiguous(), places.contiguous(), gradient
        self._launch("max_pool2d_gradient", gradient, grad_output, gradient, window, (0, 0), tensors)
        return gradient

    def mean(
        self,
        input: Tensor,
        size: Pair,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_padding: bool,
        divisor: int,
    ) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        output = input.new_empty((*input.shape[:2], *size))
        window, counted = (*kernel, *stride, *padding, 1, 1), (count_padding, divisor)
        self._launch("avg_pool2d", input, output, output, window, counted, (input.contiguous(), output))
        return output

    def mean_gradient(
        self,
        grad_output: Tensor,
        size: Pair,
        channels_last: bool,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_padding: bool,
        divisor: int,
    ) -> Tensor:
        """(N, C, H', W') -> (N, C, H, W): every value shared out among its window."""
        gradient = grad_output.new_empty((*grad_output.shape[:2], *size))
        window, counted = (*kernel, *stride, *padding, 1, 1), (count_padding, divisor)
        tensors = grad_output.contiguous(), gradient
        self._launch("avg_pool2d_gradient", gradient, grad_output, gradient, window, counted, tensors)
        return gradient

    def _launch(
        self,
        kernel: str,
        image: Tensor,
        pooled: Tensor,
        written: Tensor,
        window: tuple[int, ...],
        counted: tuple[int, int],
        arguments: tuple[Argument, ...],
    ) -> None:
        """A thread for each number that is written."""
        if not written.numel():
            return
        if max(image.shape[2] * image.shape[3], pooled.shape[2] * pooled.shape[3]) >= 2**31:
            raise Unsupported("planes of 2**31 pixels or more")
        planes = image.shape[0] * image.shape[1]
        sizes = planes, *image.shape[2:], *pooled.shape[2:]
        pooling = _Pooling(*sizes, (ctypes.c_int * 8)(*window), *counted)
        grid = (-(-written.numel() // THREADS), 1, 1)
        made = pooling_program(image.dtype, window if self.fixed else None)
        self.machine.launch(image.device, Launch(made, kernel, grid, THREADS, 0, (pooling, *arguments)))


@lru_cache(maxsize=1024)
def pooling_program(dtype: torch.dtype, window: tuple[int, ...] | None = None) -> Program:
    """The program for one window (kernel, stride, padding, dilation; pairs), or for any."""
    fixed: dict[str, str] = {} if window is None else {"FIXED": ",".join(map(str, window))}
    return program("pooling.cu", ELEMENT=element(dtype), **fixed)
