"""The contract's ops from the kernels of convolution and pooling, registered with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.kernel_arguments import Shape
from convbench.plugins.backends.cuda.pooling import Pooling
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_op import ConvKernels, convolution_ops, output_size
from convbench.registry.authoring.pool_op import PoolKernels, pooling_ops
from convbench.registry.authoring.torch_library import Library

ACTIVATIONS = ("relu", "sigmoid", "tanh")
Ints = Sequence[int]


class Convolution(Protocol):
    """The kernels of a convolution, on contiguous tensors."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor: ...

    def input_gradient(self, grad_output: Tensor, weight: Tensor, shape: Shape) -> Tensor: ...

    def weight_gradient(
        self, grad_output: Tensor, input: Tensor, shape: Shape, with_bias: bool
    ) -> tuple[Tensor, Tensor]: ...


class FusedConvolution(Convolution, Protocol):
    """Kernels that apply an activation to the sums before they are written."""

    def activated(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, activation: str
    ) -> Tensor: ...


def operations(
    namespace: str,
    device_type: str,
    dtypes: Sequence[str],
    convolution: Convolution | FusedConvolution,
    pooling: Pooling,
) -> Mapping[str, Callable[..., Tensor]]:
    """`conv2d`, `max_pool2d` and `avg_pool2d`, and `conv2d_activation` where the kernels have activations.

    Args:
        namespace: of the registered ops, `torch.ops.NAMESPACE`; every call of this function needs its own.
        device_type: of the tensors that the kernels take.
        dtypes: which they take, by name.
        convolution: the kernels of a convolution.
        pooling: the kernels of pooling.
    """
    registered = Library(namespace, device_type)
    kinds = frozenset(getattr(torch, dtype) for dtype in dtypes)

    def refuse_others(input: Tensor) -> None:
        if input.device.type != device_type or input.dtype not in kinds:
            raise Unsupported(f"{input.dtype} on {input.device.type}")

    pools = PoolKernels(pooling.largest, pooling.largest_gradient, pooling.mean, pooling.mean_gradient)
    return {
        **convolution_ops(registered, _kernels(convolution), refuse_others, autocast=True),
        **pooling_ops(registered, pools, refuse_others),
    }


def _kernels(convolution: Any) -> ConvKernels:
    """The kernels as the registration calls them; they get contiguous tensors and a `Shape`."""

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *options_of_shape, activation = options if len(options) == 5 else (*options, None)
        shape = _shape_of(input.shape, weight.shape, *options_of_shape)
        tensors = input.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
        output: Tensor
        if activation is None:
            output = convolution.forward(*tensors, shape)
        else:
            output = convolution.activated(*tensors, shape, activation)
        return output

    def input_gradient(grad_output: Tensor, weight: Tensor, size: Ints, _: bool, *options: Any) -> Tensor:
        shape = _shape_of(
            (grad_output.shape[0], weight.shape[1] * options[-1], *size), weight.shape, *options
        )
        gradient: Tensor = convolution.input_gradient(grad_output.contiguous(), weight.contiguous(), shape)
        return gradient

    def weight_gradient(
        grad_output: Tensor, input: Tensor, kernel_size: Ints, with_bias: bool, _: bool, *options: Any
    ) -> tuple[Tensor, Tensor]:
        weight = grad_output.shape[1], input.shape[1] // options[-1], *kernel_size
        shape = _shape_of(input.shape, weight, *options)
        gradients: tuple[Tensor, Tensor] = convolution.weight_gradient(
            grad_output.contiguous(), input.contiguous(), shape, with_bias
        )
        return gradients

    activations = ACTIVATIONS if hasattr(convolution, "activated") else ()
    return ConvKernels(forward, input_gradient, weight_gradient, activations)


def _shape_of(input: Ints, weight: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Shape:
    return _shape(tuple(input), tuple(weight), *map(tuple, (stride, padding, dilation)), groups)


@lru_cache(maxsize=1024)
def _shape(input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Shape:
    output = output_size(input[2:], weight[2:], stride, padding, dilation)
    return Shape(
        input[0], input[1], input[2:], weight[0], weight[2:], stride, padding[:2], dilation, groups, output
    )
