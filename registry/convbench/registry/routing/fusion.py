"""Finds neighbours in an `nn.Sequential` that one fused op can compute, and runs them so.

Only torch's own modules without hooks that are next to each other in a plain `nn.Sequential` are fused: the output
of one is the input of the next and is used nowhere else. The forward of the Sequential changes, and its modules do
not: called on their own, they compute what they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convbench.registry.ops.activations import ACTIVATIONS
from convbench.registry.ops.sequential import MOST
from convbench.registry.routing.routes import is_watched
from convbench.registry.routing.stock import (
    LAYERS,
    Route,
    call_of,
    has_hooks,
    is_stock,
    nothing_is_global,
)

Steps = Mapping[nn.Module, Sequence[Any]]  # what a Sequential runs, layers and `FusedStep`s

NAMES: Mapping[type[nn.Module], str] = {getattr(nn, each.module): each.name for each in ACTIVATIONS.values()}


class FusedStep:
    """Neighbouring layers in one call.

    Attributes:
        layers: in their order.
        fused: computes what all of them do.
    """

    def __init__(self, layers: Sequence[nn.Module], fused: Callable[[Tensor], Any]) -> None:
        self.layers = tuple(layers)
        self.fused = fused

    def applies(self, input: Any) -> bool:
        """Whether this call can be fused: hooks and the like may come later than the routing."""
        if torch.compiler.is_compiling():
            return not any(has_hooks(layer) for layer in self.layers)
        plain = type(input) is Tensor or type(input) is nn.Parameter
        return plain and all(map(is_stock, self.layers)) and nothing_is_global() and not is_watched()

    def __call__(self, input: Any) -> Any:
        if not self.applies(input):
            for layer in self.layers:
                input = layer(input)
            return input
        with torch._C.DisableTorchFunction():  # the fused call must not be routed again
            return self.fused(input)


class _Fused(nn.Sequential):
    """A Sequential in which some neighbours are one step; whoever takes its layers one by one has them apart."""

    _steps: Sequence[Callable[[Any], Any]] = ()  # a slice of it has none

    def forward(self, input: Tensor) -> Any:
        for step in self._steps or self:
            input = step(input)
        return input


def fused_steps(model: nn.Module, routes: Mapping[str, Route], wanted: Collection[str]) -> Steps:
    """The Sequentials of a model in which something can be fused, with what they run then.

    Args:
        model: any model, which stays as it is.
        routes: a function for each op, by name.
        wanted: the names of the fused ops that may be used.
    """
    fuse = _Fuse(routes, wanted)
    found = {module: fuse.steps_of(module) for module in model.modules()} if wanted else {}
    return {module: steps for module, steps in found.items() if steps is not None}


def fused_copy(model: nn.Module, steps: Steps) -> nn.Module:
    """A model of the same layers in which Sequentials run `steps`, for compilers; `model` where there are none.

    Layers, parameters and buffers are the model's own. Of a module that has a fused Sequential somewhere below it
    there is a copy, which knows as much of its mode (`train`, `eval`) as the module did at this moment.
    """

    def copied(module: nn.Module, children: dict[str, Any], own: Any) -> nn.Module:
        copy: nn.Module = object.__new__(type(module) if own is None else _Fused)
        copy.__dict__.update(vars(module), _modules=children)
        if own is not None:
            copy.__dict__["_steps"] = () if has_hooks(module) else own
        return copy

    return _with_steps(model, steps, copied) if steps else model


def fused_view(model: nn.Module, steps: Steps) -> nn.Module:
    """The same for calls that are not compiled, whose modules have all attributes in common with the model's."""

    def viewed(module: nn.Module, children: dict[str, Any], own: Any) -> nn.Module:
        kind = type(module)
        view: nn.Module = object.__new__(_views_of(kind, fused=own is not None))
        slots = {"__dict__": vars(module), "_modules": children, "_steps": own, "_viewed": module}
        for name, value in slots.items():
            object.__setattr__(view, name, value)
        return view

    return _with_steps(model, steps, viewed) if steps else model


def _views_of(kind: type[nn.Module], fused: bool) -> type[nn.Module]:
    """A class as `kind`, whose instances have their children in a slot, and not among their attributes."""

    def child_or_attribute(self: Any, name: str) -> Any:
        child = self._modules.get(name)
        return kind.__getattr__(self, name) if child is None else child

    members: dict[str, Any] = {
        "__slots__": ("_modules", "_steps", "_viewed"),
        "__getattr__": child_or_attribute,
        "__reduce_ex__": lambda self, protocol: self._viewed.__reduce_ex__(
            protocol
        ),  # copies are the module's
        "__class__": property(lambda self: kind),
    }
    if fused:
        members["forward"] = _Fused.forward
    return type(kind.__name__, (kind,), members)


def _with_steps(model: nn.Module, steps: Steps, made: Callable[..., nn.Module]) -> nn.Module:
    """The model, with what is `made` of each Sequential with steps, and of each module that has one below it."""
    children = {name: child and _with_steps(child, steps, made) for name, child in model._modules.items()}
    own: Any = steps.get(model)
    if own is None and all(child is model._modules[name] for name, child in children.items()):
        return model
    if own is not None:
        others = {child: children[name] for name, child in model._modules.items()}
        own = tuple(step if isinstance(step, FusedStep) else others[step] for step in own)
    return made(model, children, own)


@dataclass(frozen=True)
class _Fuse:
    """Finds steps, with a function for each op, and the names of the fused ops that may be used."""

    routes: Mapping[str, Route]
    wanted: Collection[str]

    def steps_of(self, module: nn.Module) -> Sequence[Callable[[Any], Any]] | None:
        """The layers of a Sequential, with one step for those that are fused; None where none are.

        A convolution goes with the activation and the pooling behind it. Where these three are no op, an
        activation goes with the pooling behind it rather than with the convolution before it: so it touches a
        quarter of the numbers, or has none of its own to write.
        """
        if type(module) is not nn.Sequential or "forward" in vars(module):
            return None
        layers = list(module)
        steps: list[Callable[[Any], Any]] = []
        at = 0
        while at < len(layers):
            step = self._chain(layers[at:]) or self._stage(layers[at : at + 3]) or self._pair(layers, at)
            if step is not None and _is_overwritten(layers[at : at + len(step.layers) + 1]):
                step = None
            steps.append(step or layers[at])
            at += 1 if step is None else len(step.layers)
        return steps if len(steps) < len(layers) else None

    def _chain(self, layers: Sequence[Any]) -> FusedStep | None:
        """As many stages as there are, and linear layers with their activations behind them, as one step."""
        if "sequential" not in self.wanted:
            return None
        route, stages, at = self.routes["sequential"], list[FusedStep](), 0
        linear: list[tuple[Any, str]] = []
        while len(stages) < MOST and (stage := self._stage(layers[at : at + 3])) is not None:
            stages.append(stage)
            at += 3
        flatten = layers[at] if at < len(layers) and type(layers[at]) is nn.Flatten else None
        if stages and flatten is not None and is_stock(flatten) and _is_whole(flatten):
            end = at + 1
            while end < len(layers) and type(layers[end]) is nn.Linear and is_stock(layers[end]):
                activation: Any = layers[end + 1] if end + 1 < len(layers) else None
                applied = type(activation) in NAMES and is_stock(activation)
                if len(stages) + len(linear) == MOST:
                    break
                linear.append((layers[end], NAMES[type(activation)] if applied else "none"))
                end = at = end + (2 if applied else 1)
        if len(stages) + len(linear) < 2 or getattr(
            layers[at] if at < len(layers) else None, "inplace", False
        ):
            return None
        triples: list[Any] = [stage.layers for stage in stages]
        parameters = [*(conv for conv, *_ in triples), *(layer for layer, _ in linear)]
        others = layers[3 * len(stages) : at]
        ends = (("flatten",), *(("linear", name) for _, name in linear)) if linear else ()

        def chain(input: Tensor) -> Any:
            if not (all(_is_plain(pool) for *_, pool in triples) and (not linear or _is_whole(flatten))):
                for step in [*(stage.fused for stage in stages), *others]:  # they were once
                    input = step(input)
                return input
            given = [each for layer in parameters for each in (layer.weight, layer.bias)]
            described = tuple(
                (
                    f"conv2d_activation_{LAYERS[type(pool)]}",
                    *map(_fixed, (conv.stride, conv.padding, conv.dilation)),
                    *(conv.groups, NAMES[type(activation)]),
                    *map(_fixed, (pool.kernel_size, pool.stride)),
                )
                for conv, activation, pool in triples
            )
            return route(input, *given, layers=described + ends)

        return FusedStep(layers[:at], chain)

    def _stage(self, layers: Sequence[Any]) -> FusedStep | None:
        """A convolution, its activation and a pooling without padding as one step, if that is an op."""
        if len(layers) < 3 or type(layers[0]) is not nn.Conv2d or type(layers[1]) not in NAMES:
            return None
        conv, activation, pool = layers
        name, pooling = NAMES[type(activation)], LAYERS.get(type(pool))
        op = f"conv2d_activation_{pooling}"
        if op not in self.wanted or not (all(map(is_stock, layers)) and _is_plain(pool)):
            return None
        route = self.routes[op]
        convolved, pooled = (
            call_of(conv, self.routes["conv2d"]),
            call_of(pool, self.routes[f"activation_{pooling}"], name),
        )

        def stage(input: Tensor) -> Any:
            if not _is_plain(pool):  # any more
                return pooled(convolved(input))
            return route(
                input, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, name,
                pool.kernel_size, pool.stride,
            )  # fmt: skip

        return FusedStep(layers, stage)

    def _pair(self, layers: Sequence[Any], at: int) -> FusedStep | None:
        """The layer at that place and its next one as one step, if they can be."""
        if at + 1 == len(layers):
            return None
        one, other = layers[at : at + 2]
        if type(one) is nn.Conv2d and type(other) in NAMES:
            if self._pooling(layers, at + 1) is not None:
                return None
            return self._step(one, other, one, "conv2d_activation", NAMES[type(other)])
        return self._pooling(layers, at)

    def _pooling(self, layers: Sequence[Any], at: int) -> FusedStep | None:
        """The activation at that place and a pooling behind it as one step, if they can be."""
        if at + 1 == len(layers) or type(layers[at]) not in NAMES:
            return None
        activation, pool = layers[at : at + 2]
        if getattr(activation, "inplace", False) and (at == 0 or type(layers[at - 1]) is not nn.Conv2d):
            return None  # it could overwrite a tensor that is used elsewhere
        return self._step(
            activation, pool, pool, f"activation_{LAYERS.get(type(pool))}", NAMES[type(activation)]
        )

    def _step(self, one: Any, other: Any, layer: Any, op: str, activation: str) -> FusedStep | None:
        """Both in one call of an op, as `layer` makes it, if both are as torch made them."""
        if op not in self.wanted or not (is_stock(one) and is_stock(other)):
            return None
        return FusedStep((one, other), call_of(layer, self.routes[op], activation))


def _is_overwritten(layers: Sequence[Any]) -> bool:
    """Whether the last layer overwrites the output of a pooling, which a fused op may keep for its gradient."""
    pool, last = layers[-2:]
    return LAYERS.get(type(pool), "conv2d") != "conv2d" and getattr(last, "inplace", False)


def _is_whole(flatten: Any) -> bool:
    """Whether it leaves the images alone, and makes one row of each."""
    return bool(flatten.start_dim == 1 and flatten.end_dim == -1)


def _fixed(sizes: Any) -> Any:
    """An option that backends can look up; torch takes lists as well."""
    return tuple(sizes) if type(sizes) is list else sizes


def _is_plain(pool: Any) -> bool:
    """Whether a pooling has no options but its window and stride."""
    return (
        pool.padding in (0, (0, 0))
        and not pool.ceil_mode
        and getattr(pool, "dilation", 1) in (1, (1, 1))
        and getattr(pool, "divisor_override", None) is None
    )
