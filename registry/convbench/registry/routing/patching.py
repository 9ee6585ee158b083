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
        if kind in _FORWARDS:
            forward = _FORWARDS[kind](module, routes)
            if forward is None:
                return None
            forwards.append((module, forward))
        elif issubclass(kind, tuple(_FORWARDS)):  # a lazy layer, say, that will turn into another class
            return None
    return PatchedForwards(forwards)


def _conv2d(module: Any, routes: Mapping[str, Route]) -> Route | None:
    if module.padding_mode != "zeros":  # the layer pads by itself first
        return None
    route = routes["conv2d"]

    def forward(input: Tensor) -> Any:
        return route(
            input, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
        )

    return forward


def _max_pool2d(module: Any, routes: Mapping[str, Route]) -> Route | None:
    if module.return_indices:
        return None
    route = routes["max_pool2d"]

    def forward(input: Tensor) -> Any:
        return route(
            input, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        )

    return forward


def _avg_pool2d(module: Any, routes: Mapping[str, Route]) -> Route | None:
    route = routes["avg_pool2d"]

    def forward(input: Tensor) -> Any:
        return route(
            input,
            module.kernel_size,
            module.stride,
            module.padding,
            module.ceil_mode,
            module.count_include_pad,
            module.divisor_override,
        )

    return forward


_FORWARDS: dict[type[nn.Module], Callable[[Any, Mapping[str, Route]], Route | None]] = {
    nn.Conv2d: _conv2d,
    nn.MaxPool2d: _max_pool2d,
    nn.AvgPool2d: _avg_pool2d,
}
