"""Differentiable pooling from the kernels of a maximum and of a mean, with and without an activation before them.

The gradient of a mean is linear, and its derivative is the mean again. The gradient of a maximum adds each
value to the place that was chosen; its derivative gathers from there, with torch. An author writes the kernels
(`PoolKernels`), and `pooling_ops` registers them with torch, once for eager calls and once for compilers
(`torch_library`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convbench.registry.authoring.conv_op import (
    activation_gradient,
    channels_last,
    new_images,
    slope_and_curvature,
)
from convbench.registry.authoring.torch_library import Registered
from convbench.registry.errors import Unsupported
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.call_arguments import PoolingOptions, being_traced, pooling_options
from convbench.registry.ops.window import IntPair, mean_divisor

_WINDOW = "int[] kernel, int[] stride, int[] padding"
_COUNTED = f"{_WINDOW}, bool count_padding, int divisor"
_IMAGE = "SymInt[] size, bool channels_last"


@dataclass(frozen=True)
class PoolKernels:
    """What computes pooling and its gradients, outside of autograd.

    `size`, `kernel`, `stride`, `padding` and `dilation` are (vertical, horizontal) pairs; a `divisor` of 0 stands
    for the number of pixels that count. Tensors may have any strides. What a kernel returns is a new tensor.

    Attributes:
        maximum: `(input, size, kernel, stride, padding, dilation) -> (largest, places)`, both (N, C, *size). A
            place is `row * kernel[1] + column` in its window, as int16; those from 2^15 on wrap around. With
            `activations`, it may be called with the name of one as a further argument, and applies it first.
        maximum_gradient: `(grad_output, places, size, channels_last, kernel, stride, padding, dilation)` ->
            (N, C, *size), each value added to its place.
        mean: `(input, size, kernel, stride, padding, count_padding, divisor) -> (N, C, *size)`.
        mean_gradient: `(grad_output, size, channels_last, kernel, stride, padding, count_padding, divisor)` ->
            (N, C, *size), each value shared out among its window.
        activations: the names that `maximum` and `activated_mean` take; without any there are no fused ops.
        activated_mean: `(input, size, kernel, stride, padding, count_padding, divisor, activation)` -> the mean
            of the activations, and a tensor: the activations with `keeps_activations`, but for a ReLU; else an
            empty one.
        activated_mean_gradient: `(grad_output, kept, kernel, stride, padding, count_padding, divisor,
            activation)` -> the gradient of the input, of the shape of `kept`: the activations with
            `keeps_activations`, but for a ReLU; else the input.
        keeps_activations: the slope of an activation is computed from its output, not from its input.
        most_pixels: of a window of `maximum`; 2^15 where the kernels read a place as a signed number.
        keeps_layout: the output is channels_last where the input is. The argument `channels_last` of the
            gradients then says whether the input is; without it, it is False.
    """

    maximum: Callable[..., tuple[Tensor, Tensor]]
    maximum_gradient: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    mean_gradient: Callable[..., Tensor]
    activations: tuple[str, ...] = ()
    activated_mean: Callable[..., tuple[Tensor, Tensor]] | None = None
    activated_mean_gradient: Callable[..., Tensor] | None = None
    keeps_activations: bool = False
    most_pixels: int = 2**16
    keeps_layout: bool = False


def pooling_ops(
    registered: Registered, kernels: PoolKernels, check: Callable[[Tensor], None]
) -> dict[str, Callable[..., Tensor]]:
    """Make `max_pool2d` and `avg_pool2d` of the contract, and their fused ops where the kernels have activations.

    Args:
        registered: the namespace for the ops, such as a `torch_library.Library`. Its op `activation_gradient`
            computes the gradient of an activation before a maximum, where `convolution_ops` registered one.
        kernels: what computes them.
        check: called with the input of a call; raises `Unsupported` for one that the kernels do not take.
    """
    _register(registered, kernels)
    eager, traced_ops = registered.eager, registered.ops

    def resolved(input: Tensor, *options: Any) -> tuple[Any, PoolingOptions]:
        """The ops to call, and the options as plain numbers, after all checks."""
        check(input)
        traced = being_traced(input)
        return traced_ops if traced else eager, pooling_options(traced, input, *options)

    def max_pool2d(
        input: Tensor,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        ceil_mode: bool = False,
    ) -> Tensor:
        """The largest value in each window: (N, C, H, W) -> (N, C, H', W')."""
        ops, options = resolved(input, kernel_size, stride, padding, dilation, ceil_mode)
        _refuse_large(options[1], kernels.most_pixels)
        largest: Tensor
        largest, _ = ops.max_pool2d(input, *options)
        return largest

    def avg_pool2d(
        input: Tensor,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        """The mean of each window: (N, C, H, W) -> (N, C, H', W')."""
        divisor = mean_divisor(divisor_override) or 0
        ops, (*options, _) = resolved(input, kernel_size, stride, padding, 1, ceil_mode)
        mean: Tensor = ops.avg_pool2d(input, *options, bool(count_include_pad), divisor)
        return mean

    def activation_max_pool2d(
        input: Tensor,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        ceil_mode: bool = False,
        activation: str = "relu",
    ) -> Tensor:
        """The largest activation in each window: (N, C, H, W) -> (N, C, H', W')."""
        name = _named(activation, kernels)
        ops, options = resolved(input, kernel_size, stride, padding, dilation, ceil_mode)
        _refuse_large(options[1], kernels.most_pixels)
        largest: Tensor
        largest, _ = ops.activation_max_pool2d(input, *options, name)
        return largest

    def activation_avg_pool2d(
        input: Tensor,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        activation: str = "relu",
    ) -> Tensor:
        """The mean activation of each window: (N, C, H, W) -> (N, C, H', W')."""
        name, divisor = _named(activation, kernels), mean_divisor(divisor_override) or 0
        ops, (*options, _) = resolved(input, kernel_size, stride, padding, 1, ceil_mode)
        mean: Tensor
        mean, _ = ops.activation_avg_pool2d(input, *options, bool(count_include_pad), divisor, name)
        return mean

    plain: tuple[Callable[..., Tensor], ...] = max_pool2d, avg_pool2d
    fused = (activation_max_pool2d, activation_avg_pool2d) if kernels.activations else ()
    return {op.__name__: op for op in (*plain, *fused)}


def _named(activation: str, kernels: PoolKernels) -> str:
    name = activation_of(activation).name
    if name not in kernels.activations:
        raise Unsupported(f"activation {name!r}")
    return name


def _refuse_large(kernel: Sequence[int], most_pixels: int) -> None:
    if kernel[0] * kernel[1] > most_pixels:
        raise Unsupported(f"windows of more than {most_pixels} pixels")


# --- registration -----------------------------------------------------------------------------------------------
# Each derivative takes the functions to call: eager ops, those of compilers, or the kernels alone.


def _register(registered: Registered, kernels: PoolKernels) -> None:
    layout = kernels.keeps_layout

    def keeps_output(activation: str) -> bool:
        return kernels.keeps_activations and activation != "relu"

    def of_activated_mean(
        calls: Any, ctx: Any, grad_output: Tensor | None, grad_kept: Tensor | None
    ) -> tuple[Any, ...]:
        (kept,) = ctx.saved_tensors
        gradient = None
        if grad_output is not None:
            gradient = calls.activation_avg_pool2d_gradient(grad_output, kept, *ctx.options, ctx.activation)
        if grad_kept is not None and keeps_output(ctx.activation):  # in gradients of gradients only
            slope = getattr(calls, "activation_gradient", activation_gradient)
            direct = slope(grad_kept, kept, ctx.activation)
            gradient = direct if gradient is None else gradient + direct
        return gradient, *[None] * 7

    def of_activated_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
        grad_output, kept = ctx.saved_tensors
        if kernels.keeps_activations:
            slope, curvature = slope_and_curvature(kept, ctx.activation)
        else:
            slope, curvature, _ = activation_of(ctx.activation).derivatives(kept)
        of_grad_output = calls.avg_pool2d(change * slope, grad_output.shape[2:], *ctx.options)
        last = layout and channels_last(kept)
        shared = calls.avg_pool2d_gradient(grad_output, kept.shape[2:], last, *ctx.options)
        return of_grad_output, change * shared * curvature, *[None] * 6

    def fake_pool(input: Tensor, size: Sequence[int], *_: Any) -> Tensor:
        return new_images(input, (*input.shape[:2], *size), layout and channels_last(input))

    def fake_maximum(input: Tensor, size: Sequence[int], *_: Any) -> tuple[Tensor, Tensor]:
        output = fake_pool(input, size)
        return output, torch.empty_like(output, dtype=torch.int16)

    def fake_activated_mean(input: Tensor, size: Sequence[int], *options: Any) -> tuple[Tensor, Tensor]:
        return fake_pool(input, size), input.new_empty(input.shape if keeps_output(options[-1]) else 0)

    def fake_gradient(grad_output: Tensor, size: Sequence[int], last: bool, *_: Any) -> Tensor:
        return new_images(grad_output, (*grad_output.shape[:2], *size), last)

    def keep_image(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.image = inputs[0].shape[2:], layout and channels_last(inputs[0])
        ctx.options = inputs[2:]

    def keep_places(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        keep_image(ctx, inputs, output)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    def keep_activated_maximum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        keep_image(ctx, inputs[:-1], output)
        ctx.activation = inputs[-1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], output[0])

    def keep_activated_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1] if keeps_output(inputs[-1]) else inputs[0])
        ctx.options, ctx.activation = inputs[2:-1], inputs[-1]

    registered.add(
        f"max_pool2d(Tensor input, SymInt[] size, {_WINDOW}, int[] dilation) -> (Tensor, Tensor)",
        kernels.maximum,
        fake_maximum,
        _of_maximum,
        keep_places,
    )
    registered.add(
        f"max_pool2d_gradient(Tensor grad_output, Tensor places, {_IMAGE}, {_WINDOW}, int[] dilation) -> Tensor",
        kernels.maximum_gradient,
        lambda grad_output, places, *options: fake_gradient(grad_output, *options),
        _of_maximum_gradient,
        _keep_places_given,
    )
    registered.add(
        f"avg_pool2d(Tensor input, SymInt[] size, {_COUNTED}) -> Tensor",
        kernels.mean,
        fake_pool,
        _of_mean,
        keep_image,
    )
    registered.add(
        f"avg_pool2d_gradient(Tensor grad_output, {_IMAGE}, {_COUNTED}) -> Tensor",
        kernels.mean_gradient,
        fake_gradient,
        _of_mean_gradient,
        _keep_size,
    )
    if not kernels.activations:
        return
    assert kernels.activated_mean is not None
    assert kernels.activated_mean_gradient is not None
    registered.add(
        f"activation_max_pool2d(Tensor input, SymInt[] size, {_WINDOW}, int[] dilation, str activation) "
        "-> (Tensor, Tensor)",
        kernels.maximum,
        fake_maximum,
        _of_maximum,
        keep_activated_maximum,
    )
    registered.add(
        f"activation_avg_pool2d(Tensor input, SymInt[] size, {_COUNTED}, str activation) -> (Tensor, Tensor)",
        kernels.activated_mean,
        fake_activated_mean,
        of_activated_mean,
        keep_activated_mean,
    )
    registered.add(
        f"activation_avg_pool2d_gradient(Tensor grad_output, Tensor kept, {_COUNTED}, str activation) -> Tensor",
        kernels.activated_mean_gradient,
        lambda grad_output, kept, *_: new_images(grad_output, kept.shape, layout and channels_last(kept)),
        of_activated_mean_gradient,
        _keep_both,
    )


def _of_maximum(calls: Any, ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
    places, *output = ctx.saved_tensors
    if output:
        slope = getattr(calls, "activation_gradient", activation_gradient)
        grad_output = slope(grad_output, output[0], ctx.activation)
    gradient = calls.max_pool2d_gradient(grad_output, places, *ctx.image, *ctx.options)
    return gradient, *[None] * (6 if output else 5)


def _of_maximum_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    """What `change` (N, C, H, W) holds where the windows' largest values were: (N, C, H', W')."""
    (places,) = ctx.saved_tensors
    kernel, stride, padding, dilation = ctx.options
    place = places.long() & 0xFFFF
    i, j = (torch.arange(extent, device=change.device) for extent in places.shape[2:])
    rows = i[:, None] * stride[0] + place // kernel[1] * dilation[0] - padding[0]
    columns = j * stride[1] + place % kernel[1] * dilation[1] - padding[1]
    *planes, height, width = change.shape
    flat = (rows * width + columns).flatten(2)
    chosen = change.reshape(*planes, height * width).gather(2, flat).reshape(places.shape)
    return chosen, *[None] * 7


def _of_mean(calls: Any, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d_gradient(grad_output, *ctx.image, *ctx.options), *[None] * 6


def _of_mean_gradient(calls: Any, ctx: Any, change: Tensor) -> tuple[Any, ...]:
    return calls.avg_pool2d(change, ctx.size, *ctx.options), *[None] * 7


def _keep_places_given(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.options = inputs[4:]


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size, ctx.options = inputs[0].shape[2:], inputs[3:]


def _keep_both(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options, ctx.activation = inputs[2:-1], inputs[-1]
