"""Routes models that consist of torch's own layers by patching the `forward` of these layers during a pass.

A torch function mode costs a few microseconds for each torch call of a forward pass, and a step of a small network
makes a dozen. Where all modules are torch's, only known layers call the ops of the contract, and patching these is
enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Route = Callable[..., Any]
LAYERS: Mapping[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
}


def calls_op_alone(module: nn.Module) -> bool:
    """Whether a layer of `LAYERS` calls its op and nothing else: it neither pads by itself nor returns indices."""
    return getattr(module, "padding_mode", "zeros") == "zeros" and not getattr(
        module, "return_indices", False
    )


def call_of(module: nn.Module, route: Route, *further: Any) -> Callable[[Tensor], Any]:
    """The call that a layer of `LAYERS` makes, of `route`; `further` arguments come after its own."""
    return _CALLS[type(module)](module, route, *further)


def _conv2d(layer: Any, route: Route, *further: Any) -> Callable[[Tensor], Any]:
    return lambda input: route(
        input, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups, *further
    )


def _max_pool2d(layer: Any, route: Route, *further: Any) -> Callable[[Tensor], Any]:
    return lambda input: route(
        input, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, *further
    )


def _avg_pool2d(layer: Any, route: Route, *further: Any) -> Callable[[Tensor], Any]:
    return lambda input: route(
        input,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.ceil_mode,
        layer.count_include_pad,
        layer.divisor_override,
        *further,
    )


_CALLS = {nn.Conv2d: _conv2d, nn.MaxPool2d: _max_pool2d, nn.AvgPool2d: _avg_pool2d}  # traced by compilers


class PatchedForwards:
    """The layers of a model whose `forward` is replaced while a pass runs."""

    def __init__(self, forwards: Sequence[tuple[nn.Module, Route]]) -> None:
        self._forwards = [(vars(module), forward) for module, forward in forwards]

    def __enter__(self) -> None:
        for attributes, forward in self._forwards:
            attributes["forward"] = forward

    def __exit__(self, *_: object) -> None:
        for attributes, _forward in self._forwards:
            attributes.pop("forward", None)


def patched_forwards(
    model: nn.Module, routes: Mapping[str, Route], fused: Sequence[tuple[nn.Module, Route]] = ()
) -> PatchedForwards | None:
    """The replaced forwards that route `model`; None where a module could call an op by itself.

    `routes` has a function for each op of the contract, which takes what `torch.nn.functional` does. `fused` are
    modules with a forward that calls some of them by itself.
    """
    forwards = list(fused)
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith("torch.nn.modules.") or "forward" in vars(module):
            return None
        if kind in LAYERS:
            if not calls_op_alone(module):
                return None
            forwards.append((module, call_of(module, routes[LAYERS[kind]])))
        elif issubclass(kind, tuple(LAYERS)):  # a lazy layer, say, that will turn into another class
            return None
    return PatchedForwards(forwards)
