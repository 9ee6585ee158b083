"""Finds neighbours in an `nn.Sequential` that one fused op can compute, and runs them so.

Only torch's own modules without hooks that are next to each other in a plain `nn.Sequential` are fused: the output
of one is the input of the next and is used nowhere else. The forward of the Sequential changes, and its modules do
not: called on their own, they compute what they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from convbench.registry.ops.activations import ACTIVATIONS
from convbench.registry.routing.patching import LAYERS, Route, call_of, calls_op_alone

Step = Callable[[Tensor], Any]

NAMES: Mapping[type[nn.Module], str] = {getattr(nn, each.module): each.name for each in ACTIVATIONS.values()}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fused_forwards(model: nn.Module, routes: Mapping[str, Route]) -> list[tuple[nn.Module, Route]]:
    """The Sequentials of a model in which something can be fused, with a forward that does.

    Args:
        model: any model, which stays as it is.
        routes: a function for each fused op that is wanted, by name.
    """
    found = ((module, fused_steps(module, routes)) for module in model.modules())
    return [(module, _in_order(steps)) for module, steps in found if steps is not None]


def fused_copy(model: nn.Module, routes: Mapping[str, Route]) -> nn.Module:
    """A model of the same layers in which Sequentials are fused, for compilers; `model` where nothing can be.

    Layers, parameters and buffers are the model's own. Of a module that has a fused Sequential somewhere below it
    there is a copy, which knows as much of its mode (`train`, `eval`) as the module did at this moment.
    """
    children = {name: child and fused_copy(child, routes) for name, child in model._modules.items()}
    steps = None if _has_hooks(model) else fused_steps(model, routes, list(children.values()))
    if steps is None and all(child is model._modules[name] for name, child in children.items()):
        return model
    copy: nn.Module = object.__new__(type(model) if steps is None else _Fused)
    copy.__dict__.update(vars(model), _modules=children)
    if steps is not None:
        copy.__dict__["_steps"] = tuple(steps)
    return copy


class _Fused(nn.Sequential):
    """A Sequential in which some neighbours are one step; whoever takes its layers one by one has them apart."""

    _steps: tuple[Step, ...] = ()  # a slice of it has none

    def forward(self, input: Tensor) -> Any:
        for step in self._steps or self:
            input = step(input)
        return input


def _in_order(steps: Sequence[Step]) -> Route:
    def forward(input: Tensor) -> Any:
        for step in steps:
            input = step(input)
        return input

    return forward


def fused_steps(
    module: nn.Module, routes: Mapping[str, Route], layers: Sequence[Any] | None = None
) -> list[Step] | None:
    """The modules of a Sequential, with one function for those that are fused; None where none are.

    `layers` are others in the place of its own.

    An activation goes with the pooling behind it, where that can be, rather than with the convolution before it:
    so it touches a quarter of the numbers, or has none of its own to write.
    """
    if type(module) is not nn.Sequential or "forward" in vars(module):
        return None
    layers = list(module) if layers is None else layers
    steps: list[Step] = []
    fused = False
    at = 0
    while at < len(layers):
        step = _fused_step(layers, at, routes)
        steps.append(layers[at] if step is None else step)
        fused |= step is not None
        at += 1 if step is None else 2
    return steps if fused else None


def _fused_step(layers: Sequence[Any], at: int, routes: Mapping[str, Route]) -> Step | None:
    """The layer at that place and its next one as one function, if they can be."""
    if at + 1 == len(layers):
        return None
    one, other = layers[at : at + 2]
    if not (_replaceable(one) and _replaceable(other)):
        return None
    if type(one) is nn.Conv2d and type(other) in NAMES and calls_op_alone(one):
        route = routes.get("conv2d_activation")
        if route is None or _fused_pooling(layers, at + 1, routes) is not None:
            return None
        return _unless_hooked(one, other, call_of(one, route, NAMES[type(other)]))
    return _fused_pooling(layers, at, routes)


def _fused_pooling(layers: Sequence[Any], at: int, routes: Mapping[str, Route]) -> Step | None:
    """The activation at that place and a pooling behind it as one function, if they can be."""
    if at + 1 == len(layers) or type(layers[at]) not in NAMES:
        return None
    activation, pool = layers[at : at + 2]
    if not (_replaceable(activation) and _replaceable(pool)):
        return None
    if getattr(activation, "inplace", False) and (at == 0 or type(layers[at - 1]) is not nn.Conv2d):
        return None  # it could overwrite a tensor that is used elsewhere
    route = routes.get(f"activation_{LAYERS.get(type(pool))}")
    if route is None or not calls_op_alone(pool):
        return None
    return _unless_hooked(activation, pool, call_of(pool, route, NAMES[type(activation)]))


def _replaceable(module: nn.Module) -> bool:
    return "forward" not in vars(module) and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, or there are global ones."""
    return any(getattr(module, name) for name in HOOKS) or _has_any_global_hook()


def _unless_hooked(one: nn.Module, other: nn.Module, fused: Step) -> Step:
    """Hooks may come later than the routing."""

    def call(input: Tensor) -> Any:
        if _has_hooks(one) or _has_hooks(other):
            return other(one(input))
        with torch._C.DisableTorchFunction():  # the fused call must not be routed again
            return fused(input)

    return call
