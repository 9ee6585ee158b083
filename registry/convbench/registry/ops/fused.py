"""Ops of the contract that are two or three layers in one: convolution, activation and pooling, or two of them.

An activation reads and writes every number once more, and its gradient twice; a kernel that applies it where it
has the number at hand saves that. What is fused is found by `convbench.registry.routing.fusion`, and is optional
for a backend in every respect: what it does not offer, or refuses, is computed as the ops that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.op import Op


def conv2d_activation(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str = "relu",
) -> Tensor:
    """activation(conv2d(input, weight, bias)); shapes as there, `activation` one of `relu`, `sigmoid`, `tanh`."""
    activate = activation_of(activation).function
    return activate(F.conv2d(input, weight, bias, stride, padding, dilation, groups))


def activation_max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    activation: str = "relu",
) -> Tensor:
    """max_pool2d(activation(input)): activations are monotone, so the largest is chosen among the inputs."""
    activate = activation_of(activation).function
    return activate(F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode))


def activation_avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    activation: str = "relu",
) -> Tensor:
    """avg_pool2d(activation(input)); shapes as there. Padding is added after the activation, as zeros."""
    activated = activation_of(activation).function(input)
    return F.avg_pool2d(
        activated, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def _stage(name: str, pooling: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def stage(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        activation: str = "relu",
        kernel_size: Any = 2,
        pool_stride: Any = None,
    ) -> Tensor:
        """pooling(activation(conv2d(...))), (N, C, H, W) -> (N, O, H', W'); the pooling has no padding."""
        activated = conv2d_activation(input, weight, bias, stride, padding, dilation, groups, activation)
        return pooling(activated, kernel_size, pool_stride)

    stage.__name__ = name
    return stage


STAGES: Mapping[str, Callable[..., Tensor]] = {
    name: _stage(name, pooling)
    for name, pooling in (
        ("conv2d_activation_max_pool2d", F.max_pool2d),
        ("conv2d_activation_avg_pool2d", F.avg_pool2d),
    )
}


def pooling_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of the pooling out of those of an op that ends with one."""
    return {"kernel_size": arguments.pop("kernel_size"), "stride": arguments.pop("pool_stride")}


def fused_ops(conv2d: Op, max_pool2d: Op, avg_pool2d: Op) -> tuple[Op, ...]:
    """The fused ops, from those without an activation. Its operations are not counted, as they are not apart."""

    def fused(base: Op, reference: Callable[..., Tensor], **rest: Any) -> Op:
        return replace(
            base,
            name=reference.__name__,
            reference=reference,
            functions=(),
            modules=(),
            multilinear=False,
            base=base,
            **rest,
        )

    return (
        fused(conv2d, conv2d_activation, activated="output"),
        fused(max_pool2d, activation_max_pool2d, activated="output"),
        fused(avg_pool2d, activation_avg_pool2d, activated="input"),
        *(
            fused(conv2d, reference, activated="output", pooled=pooling, flops=_flops(conv2d, pooling))
            for pooling, reference in zip((max_pool2d, avg_pool2d), STAGES.values(), strict=True)
        ),
    )


def _flops(conv2d: Op, pooling: Op) -> Callable[..., int]:
    """Those of both, which are counted at every call; of convolutions that are alike they are computed once."""

    @lru_cache(maxsize=1024)
    def of_convolution(input: torch.Size, weight: torch.Size, *options: Any) -> int:
        images, kernels = (torch.empty(shape, device="meta") for shape in (input, weight))
        return conv2d.flops(conv2d.reference(images, kernels, None, *options), images, kernels)

    def of_both(
        output: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        activation: str = "relu",
        kernel_size: Any = 2,
        pool_stride: Any = None,
    ) -> int:
        options = (tuple(each) if isinstance(each, list) else each for each in (stride, padding, dilation))
        return of_convolution(input.shape, weight.shape, *options, groups) + pooling.flops(
            output, input, kernel_size
        )

    return of_both


def decompose(
    op: Op, routes: Mapping[str, Callable[..., Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What a call of a fused op stands for: the activation by torch, and the rest by `routes`, ops by name.

    One that ends with a pooling becomes a convolution, and a pooling with the activation before it.
    """
    assert op.base is not None
    arguments, base = op.bind(args, kwargs), routes[op.base.name]
    if op.pooled is not None:
        window = pooling_of(arguments)
        activation = arguments.pop("activation")
        pool = routes[f"activation_{op.pooled.name}"]
        return pool(base(**arguments), **window, activation=activation)
    activate: Callable[[Tensor], Tensor] = activation_of(arguments.pop("activation")).function
    if op.activated == "input":
        return base(**{**arguments, "input": activate(arguments["input"])})
    return activate(base(**arguments))
