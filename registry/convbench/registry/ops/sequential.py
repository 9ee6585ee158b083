"""`sequential`: neighbouring layers of a network as one op: stages, and linear layers behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.fused import STAGES, decompose
from convbench.registry.ops.op import Op

Layers = tuple[tuple[Any, ...], ...]

MOST = 8  # layers with parameters
PARAMETERS = tuple(f"{kind}{number}" for number in range(MOST) for kind in ("weight", "bias"))


def sequential(input: Tensor, *parameters: Tensor | None, layers: Layers, **named: Tensor | None) -> Tensor:
    """(N, C, H, W), weight and bias of each layer -> the output of the last layer.

    A layer is a tuple: `(name, *options)` of a stage, with the op's arguments from `stride` on; `("flatten",)`; or
    `("linear", activation)`, where the activation may be `none`.
    """
    return in_turn(STAGES, input, in_order(parameters, named), layers)


_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
sequential.__dict__["__signature__"] = inspect.Signature(
    [
        inspect.Parameter("input", _KIND),
        *(inspect.Parameter(name, _KIND, default=None) for name in PARAMETERS),
        inspect.Parameter("layers", inspect.Parameter.KEYWORD_ONLY),
    ]
)


def in_order(parameters: Sequence[Tensor | None], named: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
    """All parameters of a call, of which some may have been given by name.

    Raises:
        TypeError: there is none of a name.
    """
    if not named:
        return tuple(parameters)
    if not set(named) <= set(PARAMETERS[len(parameters) :]):
        raise TypeError(
            f"sequential takes its input, {', '.join(PARAMETERS)} and layers, not {sorted(named)}"
        )
    return _given([*parameters, *(named.get(name) for name in PARAMETERS[len(parameters) :])])


def _given(parameters: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Without those of layers that are not there."""
    end = len(parameters)
    while end and parameters[end - 1] is None and parameters[end - 2] is None:
        end -= 2
    return tuple(parameters[:end])


def by_position(implementation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, which takes its arguments by position as well, `layers` as the last one."""

    def call(*args: Any, **named: Any) -> Tensor:
        if named:
            return implementation(*args, **named)
        input, *parameters, layers = args
        return implementation(input, *_given(parameters), layers=layers)

    return call


def with_parameters(parameters: Sequence[Any], layers: Layers) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Each layer, with its weight and bias, or with None.

    Raises:
        ValueError: there are not as many parameters as the layers have.
    """
    at = 0
    for layer in layers:
        if layer == ("flatten",):
            yield layer, None, None
            continue
        if layer[0] != "linear" and layer[0] not in STAGES:
            raise ValueError(f"no layer of sequential: {layer!r}")
        if at + 2 > len(parameters):
            raise ValueError(f"{len(parameters)} parameters are too few for the layers {layers}")
        yield layer, parameters[at], parameters[at + 1]
        at += 2
    if any(each is not None for each in parameters[at:]):
        raise ValueError(f"{len(parameters)} parameters are too many for the layers {layers}")


def in_turn(
    stages: Mapping[str, Callable[..., Tensor]], input: Tensor, parameters: Sequence[Any], layers: Layers
) -> Tensor:
    """The layers one after the other: each stage by the function of its name, the others by torch."""
    for (name, *options), weight, bias in with_parameters(parameters, layers):
        if name == "flatten":
            input = input.flatten(1)
        elif name == "linear":
            input = F.linear(input, weight, bias)
            if options != ["none"]:
                input = activation_of(*options).function(input)
        else:
            input = stages[name](input, weight, bias, *options)
    return input


def in_parts(op: Op, routes: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """A fused op computed as what it stands for, by `routes`, ops by name."""
    if op.chain:
        return lambda input, *given, layers, **named: in_turn(routes, input, in_order(given, named), layers)
    return lambda *args, **kwargs: decompose(op, routes, args, kwargs)


def sequential_op(conv2d: Op, fused: Sequence[Op]) -> Op:
    """The op, of which stages are counted, as they are by themselves; linear layers are not."""
    return replace(
        conv2d,
        name="sequential",
        reference=sequential,
        functions=(),
        modules=(),
        tensors=("input", *PARAMETERS),
        multilinear=False,
        of_squares=sequential,
        flops=_flops({op.name: op for op in fused}),
        base=conv2d,
        chain=True,
    )


def _flops(ops: Mapping[str, Op]) -> Callable[..., int]:
    @lru_cache(maxsize=1024)
    def counted(layers: Layers, *shapes: torch.Size | None) -> int:
        input: Any
        input, *parameters = (None if each is None else torch.empty(each, device="meta") for each in shapes)
        flops = 0
        for layer, weight, bias in with_parameters(parameters, layers):
            given = () if weight is None else (weight, bias)
            output = sequential(input, *given, layers=(layer,))
            if layer[0] in ops:
                flops += ops[layer[0]].flops(output, input, weight, bias, *layer[1:])
            input = output
        return flops

    def flops(
        output: Tensor, input: Tensor, *parameters: Tensor | None, layers: Layers, **named: Tensor | None
    ) -> int:
        given = input, *in_order(parameters, named)
        return counted(layers, *(None if each is None else each.shape for each in given))

    return flops
