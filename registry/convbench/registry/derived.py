"""A differentiable convolution from a forward alone: both gradients are convolutions themselves.

With Y = X * W, the gradient of X is the full convolution of the upstream G, spread out by the stride, with the
flipped kernels, filters and channels exchanged; the gradient of W is the correlation of X with G, batch and
channels exchanged, stride and dilation swapped (Dumoulin and Visin, "A guide to convolution arithmetic for deep
learning", 2016, chapter 4). Both are asked of the author's forward, so a backward costs what these convolutions
cost it: kernels as large as the output for W, and stride² as many pixels, mostly zeros, for X. As they are
differentiable in turn, so are the gradients, to any order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.errors import PluginError, Unsupported
from convbench.registry.geometry import IntPair, conv2d_window

Pair = tuple[int, int]
Forward = Callable[[Tensor, Tensor, Tensor | None, Pair, Pair, Pair, int], Tensor]
PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def derived_backward(forward: Forward) -> Callable[..., Tensor]:
    """Make an op of the contract from `forward(input, weight, bias, stride, padding, dilation, groups)`.

    The op checks its arguments as torch does, and hands the forward what is simple: contiguous tensors that are
    not part of a graph, a bias or None, and stride, padding and dilation as (vertical, horizontal) pairs of
    ints; padding by name and uneven padding are resolved before. It returns a new tensor (N, O, H', W').
    It need not be differentiable; NumPy and C will do. It is not asked where there is nothing to sum.

    It must take kernels of any size, stride and dilation for the backward of all that it takes forward: what it
    refuses with `Unsupported` in the backward is refused there, in a sentence that says which gradient it was.

    Raises:
        PluginError: `forward` cannot be called with these seven arguments.
    """
    try:
        inspect.signature(forward).bind(*PARAMETERS)
    except TypeError as error:
        raise PluginError(
            f"derived_backward: {_name(forward)} must take ({', '.join(PARAMETERS)}), but has {error}"
        ) from None

    @wraps(forward)
    def conv2d(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
    ) -> Tensor:
        window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
        return _convolve(forward, input, weight, bias, window.stride, window.pad, window.dilation, groups)

    conv2d.__dict__["backward_is_derived"] = True
    return conv2d


def backward_is_derived(op: Callable[..., Any]) -> bool:
    """Whether the op's backward was made by `derived_backward`; the author's forward is its `__wrapped__`."""
    return bool(getattr(op, "backward_is_derived", False))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _convolve(
    forward: Forward,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    pad: tuple[int, int, int, int],
    dilation: Pair,
    groups: int,
) -> Tensor:
    """A convolution with padding as `F.pad` takes it; where it is uneven, or negative and cuts, torch pads."""
    left, right, top, bottom = pad
    if left == right >= 0 and top == bottom >= 0:
        padding = top, left
    else:
        input, padding = F.pad(input, pad), (0, 0)
    output: Tensor = _Convolution.apply(input, weight, bias, forward, stride, padding, dilation, groups)
    return output


class _Convolution(torch.autograd.Function):
    """The author's forward, and the backward that is made of it."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        forward: Forward,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.call = forward, stride, padding, dilation, groups
        if not (input.numel() and weight.numel()):
            return _nothing_to_sum(input, weight, bias, stride, padding, dilation)
        plain = [tensor if tensor is None else tensor.detach().contiguous() for tensor in (input, weight, bias)]
        return forward(plain[0], plain[1], plain[2], stride, padding, dilation, groups)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_input = _gradient_of_input(upstream, input, weight, *ctx.call)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(upstream, input, weight, *ctx.call)
        if ctx.needs_input_grad[2]:
            of_bias = upstream.sum(dim=(0, 2, 3))
        return of_input, of_weight, of_bias, None, None, None, None, None


def _gradient_of_input(
    upstream: Tensor,
    input: Tensor,
    weight: Tensor,
    forward: Forward,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """dX[y] = sum over u, i with i·stride + u·dilation − padding = y of G[i]·W[u]."""
    (down, across), size = stride, upstream.shape[2:]
    spread = F.pad(upstream[..., :, None, :, None], (0, across - 1, 0, 0, 0, down - 1))
    spread = spread.reshape(*upstream.shape[:2], size[0] * down, size[1] * across)  # stride − 1 zeros after each
    kernels = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-2, -1)  # (C, O/groups, ..)
    pad = []
    for axis in (1, 0):  # as `F.pad` wants it: the last axis first
        reach = dilation[axis] * (weight.shape[2 + axis] - 1)
        before = reach - padding[axis]
        pad += [before, input.shape[2 + axis] + reach - before - spread.shape[2 + axis]]
    with _saying("input", kernels):
        return _convolve(forward, spread, kernels, None, (1, 1), _four(pad), dilation, groups)


def _gradient_of_weight(
    upstream: Tensor,
    input: Tensor,
    weight: Tensor,
    forward: Forward,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """dW[o, c, u] = sum over n, i of G[n, o, i]·X[n, c, i·stride + u·dilation − padding]."""
    images = input.unflatten(1, (groups, -1)).permute(2, 1, 0, 3, 4).flatten(1, 2)  # (C/groups, groups·N, H, W)
    kernels = upstream.transpose(0, 1)  # (O, N, H', W')
    pad = []
    for axis in (1, 0):
        seen = dilation[axis] * (weight.shape[2 + axis] - 1) + stride[axis] * (upstream.shape[2 + axis] - 1) + 1
        pad += [padding[axis], seen - padding[axis] - input.shape[2 + axis]]  # less what no window reached
    with _saying("weight", kernels):
        gradient = _convolve(forward, images, kernels, None, dilation, _four(pad), stride, groups)
    return gradient.transpose(0, 1)  # (C/groups, O, kh, kw) before


def _four(pad: list[int]) -> tuple[int, int, int, int]:
    left, right, top, bottom = pad
    return left, right, top, bottom


def _nothing_to_sum(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The output of an empty batch, or of no channels: the bias alone."""
    size = [
        (extent + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for extent, pad, gap, kernel, step in zip(
            input.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    output = input.new_zeros(len(input), len(weight), *size)
    return output if bias is None else output + bias.detach()[:, None, None]


class _saying:  # noqa: N801 - reads as the function it is; a generator would not trace under torch.compile
    """Say of a refusal in the backward which convolution it was that the author's forward refused."""

    def __init__(self, name: str, kernels: Tensor) -> None:
        self._name, self._size = name, tuple(kernels.shape[2:])

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Unsupported):
            height, width = self._size
            raise Unsupported(
                f"the gradient of {self._name} is a convolution with kernels of {height}x{width}, which the "
                f"forward refuses: {error}"
            ) from error
