"""The options of a call as plain numbers, looked at as torch looks at them, and only once for all calls alike.

An eager call is recognised by its shapes and options and found in a cache: to check and resolve it each time would
take as long as a small layer. One that a compiler traces is resolved as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from convbench.registry.ops.window import conv2d_window, pool2d_window, whole

Pair = tuple[int, int]
ConvolutionOptions = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
PoolingOptions = tuple[Pair, Pair, Pair, Pair, Pair]


def being_traced(input: Tensor) -> bool:
    """Whether a compiler is looking at a call, or its tensor is one without numbers."""
    return torch.compiler.is_compiling() or type(input) is not Tensor


def convolution_options(
    traced: bool, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> ConvolutionOptions:
    """Stride, padding at top, left, bottom and right, dilation, and groups.

    Args:
        traced: whether the call is `being_traced`.
        input: (N, C, H, W).
        weight: (O, C/groups, kh, kw).
        bias: (O,) or None.
        options: stride, padding, dilation and groups as torch takes them.

    Raises:
        ValueError, Unsupported: as `conv2d_window` does.
    """
    if traced:
        return _convolution(input, weight, bias, *options)
    of_bias = None if bias is None else (bias.shape, bias.dtype)
    arguments = input.shape, input.dtype, weight.shape, weight.dtype, of_bias, *options
    try:
        return _convolution_of(*arguments)
    except TypeError:  # a list, which cannot be looked up
        return _convolution_of.__wrapped__(*arguments)


def pooling_options(traced: bool, input: Tensor, *options: Any) -> PoolingOptions:
    """Output size, kernel size, stride, padding and dilation, each (vertical, horizontal).

    Args:
        traced: whether the call is `being_traced`.
        input: (N, C, H, W).
        options: kernel_size, stride, padding, dilation and ceil_mode as torch takes them.

    Raises:
        ValueError, Unsupported: as `pool2d_window` does.
    """
    if traced:
        return _pooling(input, *options)
    try:
        return _pooling_of(input.shape, *options)
    except TypeError:  # a list, which cannot be looked up
        return _pooling_of.__wrapped__(input.shape, *options)


@lru_cache(maxsize=1024, typed=True)
def _convolution_of(
    size: torch.Size, dtype: torch.dtype, kernels: torch.Size, of: torch.dtype, of_bias: Any, *options: Any
) -> ConvolutionOptions:
    input = torch.empty(size, dtype=dtype, device="meta")
    weight = torch.empty(kernels, dtype=of, device="meta")
    bias = None if of_bias is None else torch.empty(of_bias[0], dtype=of_bias[1], device="meta")
    return _convolution(input, weight, bias, *options)


def _convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> ConvolutionOptions:
    window = conv2d_window(input, weight, bias, *options)
    return window.stride, (*window.before, *window.after), window.dilation, whole(options[-1], "groups")


@lru_cache(maxsize=1024, typed=True)
def _pooling_of(size: torch.Size, *options: Any) -> PoolingOptions:
    return _pooling(torch.empty(size, device="meta"), *options)


def _pooling(input: Tensor, *options: Any) -> PoolingOptions:
    window = pool2d_window(input, *options)
    return window.output_size, window.kernel_size, window.stride, window.before, window.dilation


def is_observed() -> bool:
    """Whether a tracer or a dispatch mode sees what torch computes in this thread."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0


@contextmanager
def unobserved() -> Iterator[None]:
    """Neither a tracer nor a dispatch mode sees what is computed here: it is about a call, and no part of it."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with _disable_current_modes():
            yield
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]
