"""torch's own layers as they come: which op they call, and how; and which are certain to be as torch made them.

A torch function mode costs microseconds for each torch call of a forward pass, and a step of a small network
makes a dozen. A layer that is certain to do what its class in torch does needs no mode: its op can be called
directly, or the layer itself where it calls none. What has a hook, a `forward` of its own or a class that
somebody patched is not certain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

Route = Callable[..., Any]
LAYERS: Mapping[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
}
OTHERS = (  # call no op of the contract
    nn.Sequential, nn.Identity, nn.Flatten, nn.Linear, nn.Dropout, nn.Dropout2d, nn.AdaptiveAvgPool2d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Softmax,
)  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_torchs(function: Any) -> bool:
    """Whether a method is the one that torch has; it may have been replaced before this module was imported."""
    source = getattr(getattr(function, "__code__", None), "co_filename", "")
    return function is None or os.path.dirname(source) == os.path.dirname(nn.modules.__file__)


_CALL = nn.Module.__call__
_STOCK: tuple[Any, ...] = (*LAYERS, *OTHERS)
_METHODS: dict[Any, tuple[Any, Any]] = {  # the forward pass, and for Conv2d what it goes through
    kind: (kind.forward, getattr(kind, "_conv_forward", None))
    for kind in _STOCK
    if all(map(_is_torchs, (kind.__call__, kind.forward, getattr(kind, "_conv_forward", None))))
}
FUNCTIONS = {"conv2d": torch.conv2d, "max_pool2d": F.max_pool2d, "avg_pool2d": torch._C._nn.avg_pool2d}


def is_stock(module: nn.Module) -> bool:
    """Whether calling a module does what its class in torch does, and nothing else, if `nothing_is_global`.

    A layer of `LAYERS` calls its op then, and nothing else.
    """
    return has_stock_class(type(module)) and are_untouched((module,))


def has_stock_class(kind: Any) -> bool:
    """Whether it is one of the classes here, and its methods are torch's."""
    if kind not in _METHODS:
        return False
    forward, conv_forward = _METHODS[kind]
    return (
        kind.forward is forward
        and kind.__call__ is _CALL
        and (conv_forward is None or kind._conv_forward is conv_forward)
    )


def are_untouched(modules: Iterable[nn.Module]) -> bool:
    """Whether modules have no hook and no method of their own, and do no more than call their op.

    It is asked of every layer in every pass, and so without any further call.
    """
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "_conv_forward" in own
            or "_compiled_call_impl" in own
            or own.get("padding_mode", "zeros") != "zeros"
            or own.get("return_indices")
        ):
            return False
    return True


def nothing_is_global() -> bool:
    """Whether no hook is on every module, and layers find torch's functions in `torch.nn.functional`."""
    for name, function in FUNCTIONS.items():
        if getattr(F, name) is not function:
            return False
    return not _has_any_global_hook()


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, or there are global ones."""
    return any(getattr(module, name) for name in HOOKS) or _has_any_global_hook()


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
