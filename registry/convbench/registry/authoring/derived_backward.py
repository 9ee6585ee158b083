"""A differentiable convolution from a forward alone: both gradients are convolutions themselves.

With Y = X * W and G the gradient of Y, the gradient of X is the full convolution of G, spread out by the stride,
with the flipped kernels, filters and channels exchanged; the gradient of W is the correlation of X with G, batch
and channels exchanged, stride and dilation swapped (Dumoulin and Visin, "A guide to convolution arithmetic for
deep learning", 2016, chapter 4). The author's forward computes both, so a backward costs what these convolutions
cost: kernels as large as the output for W, and stride² as many pixels, mostly zeros, for X. As they are
differentiable in turn, so are the gradients, to any order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.authoring.conv_op import output_size
from convbench.registry.authoring.conv_parts import TORCHS, Gradients, Needs, Parts
from convbench.registry.authoring.torch_library import Forward, Pair, has_memory, opaque
from convbench.registry.errors import PluginError, Unsupported
from convbench.registry.ops.window import IntPair, conv2d_window

PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def derived_backward(forward: Forward) -> Callable[..., Tensor]:
    """Make an op of the contract from `forward(input, weight, bias, stride, padding, dilation, groups)`.

    The op checks its arguments as torch does, and hands the forward what is simple: contiguous tensors that are
    not part of a graph, a bias or None, and stride, padding and dilation as (vertical, horizontal) pairs of
    ints; padding by name and uneven padding are resolved before. It returns a new tensor (N, O, H', W').
    It need not be differentiable; NumPy and C will do. It is not asked where there is nothing to sum.

    It must take kernels of any size, stride and dilation for the backward of all that it takes forward: what it
    refuses with `Unsupported` in the backward is refused there, in a sentence that says which gradient it was.
    `torch.compile` takes the forward as it is, without looking into it.

    Raises:
        PluginError: `forward` cannot be called with these seven arguments.
    """
    try:
        inspect.signature(forward).bind(*PARAMETERS)
    except TypeError as error:
        name = getattr(forward, "__qualname__", repr(forward))
        raise PluginError(
            f"derived_backward: {name} must take ({', '.join(PARAMETERS)}); it has {error}"
        ) from None
    checked = _checked(forward)
    compiled = opaque(checked)

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
        asked = compiled if torch.compiler.is_compiling() else checked
        return _resolved(asked, input, weight, bias, stride, padding, dilation, groups)

    def backward(grad_output: Tensor, input: Tensor, weight: Tensor, *options: Any) -> Gradients:
        *call, needs = options
        asked = compiled if torch.compiler.is_compiling() else checked
        return _gradients(grad_output, input, weight, (asked, *call), needs)

    conv2d.__dict__["backward_is_derived"] = True
    conv2d.__dict__["parts"] = Parts(conv2d, backward)
    conv2d.__dict__["registered"] = partial(_resolved, compiled)  # what compiled code calls
    return conv2d


def _checked(forward: Forward) -> Forward:
    """The same forward, whose output is checked for its shape."""

    def checked(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Tensor:
        output = forward(input, weight, bias, stride, padding, dilation, groups)
        size = output_size(input.shape[2:], weight.shape[2:], stride, padding * 2, dilation)
        shape = len(input), len(weight), *size
        if isinstance(output, Tensor) and output.shape != shape:
            raise PluginError(
                f"the output has shape {tuple(output.shape)}, not {shape}, for an input of {tuple(input.shape)}, "
                f"a weight of {tuple(weight.shape)}, stride {stride}, padding {padding} and dilation {dilation}"
            )
        return output

    return checked


def backward_is_derived(op: Callable[..., Any]) -> bool:
    """Whether the op's backward was made by `derived_backward`; the author's forward is its `__wrapped__`."""
    while isinstance(op, partial):
        op = op.func
    return bool(getattr(op, "backward_is_derived", False))


def _resolved(
    forward: Forward,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution with its arguments as torch takes them, checked and resolved to plain numbers."""
    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    return _convolve(forward, input, weight, bias, window.stride, window.pad, window.dilation, groups)


def _convolve(
    forward: Forward,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    pad: tuple[int, ...],
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
        images, kernels = input.detach().contiguous(), weight.detach().contiguous()
        bias = None if bias is None else bias.detach().contiguous()
        if not (images.numel() and kernels.numel()):
            return _nothing_to_sum(images, kernels, bias, stride, padding, dilation)
        return forward(images, kernels, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        gradients = _gradients(grad_output, input, weight, ctx.call, ctx.needs_input_grad[:3])
        return *gradients, None, None, None, None, None


def _gradients(grad_output: Tensor, input: Tensor, weight: Tensor, call: Any, needs: Needs) -> Gradients:
    """Of input, weight and bias; `call` is a forward, stride, padding, dilation and groups."""
    if not has_memory(grad_output):
        _, stride, padding, dilation, groups = call
        return TORCHS.backward(grad_output, input, weight, stride, padding, dilation, groups, needs)
    if grad_output.is_complex():  # torch's gradients are those of the conjugates
        input, weight = input.conj_physical(), weight.conj_physical()
    of_input = _gradient_of_input(grad_output, input, weight, *call) if needs[0] else None
    of_weight = _gradient_of_weight(grad_output, input, weight, *call) if needs[1] else None
    return of_input, of_weight, grad_output.sum(dim=(0, 2, 3)) if needs[2] else None


def _gradient_of_input(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    forward: Forward,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """dX[y] = sum over u, i with i·stride + u·dilation − padding = y of G[i]·W[u]."""
    (down, across), (height, width) = stride, grad_output.shape[2:]
    spread = F.pad(grad_output[..., :, None, :, None], (0, across - 1, 0, 0, 0, down - 1))  # zeros after each
    spread = spread.reshape(*grad_output.shape[:2], height * down, width * across)
    kernels = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # (C, O/groups, kh, kw)
    pad = []
    for axis in (1, 0):  # as `F.pad` wants it: the last axis first
        reach = dilation[axis] * (weight.shape[2 + axis] - 1)
        before = reach - padding[axis]
        pad += [before, input.shape[2 + axis] + reach - before - spread.shape[2 + axis]]
    with _Saying("input", kernels):
        return _convolve(forward, spread, kernels.flip(-2, -1), None, (1, 1), tuple(pad), dilation, groups)


def _gradient_of_weight(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    forward: Forward,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """dW[o, c, u] = sum over n, i of G[n, o, i]·X[n, c, i·stride + u·dilation − padding]."""
    images = input.unflatten(1, (groups, -1)).permute(2, 1, 0, 3, 4)
    images = images.flatten(1, 2)  # (C/groups, groups·N, H, W)
    kernels = grad_output.transpose(0, 1)  # (O, N, H', W')
    pad = []
    for axis in (1, 0):
        last_window = stride[axis] * (grad_output.shape[2 + axis] - 1)
        seen = last_window + dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        pad += [padding[axis], seen - padding[axis] - input.shape[2 + axis]]  # cuts what no window reached
    with _Saying("weight", kernels):
        gradient = _convolve(forward, images, kernels, None, dilation, tuple(pad), stride, groups)
    return gradient.transpose(0, 1)  # (C/groups, O, kh, kw) before


def _nothing_to_sum(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The output of an empty batch, or of no channels: the bias alone."""
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding * 2, dilation)
    output = input.new_zeros(len(input), len(weight), *size)
    return output if bias is None else output + bias[:, None, None]


class _Saying:
    """Says of an error in the backward which convolution it was that the author's forward was called for."""

    def __init__(self, name: str, kernels: Tensor) -> None:
        self._name, self._size = name, (kernels.shape[2], kernels.shape[3])

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Unsupported | PluginError):
            what = (
                "which the forward refuses"
                if isinstance(error, Unsupported)
                else "which the forward gets wrong"
            )
            height, width = self._size
            raise type(error)(
                f"the gradient of {self._name} is a convolution with kernels of {height}x{width}, {what}: {error}"
            ) from error
