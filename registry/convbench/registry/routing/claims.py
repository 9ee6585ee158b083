"""Whether a backend's record claims a call: it is asked before the backend is.

A record names devices and dtypes, and its kernels work on plain tensors: strided memory on a device, read and
written outside of torch. A tensor that holds more than its numbers, or other numbers than its memory (a subclass,
a sparse or quantized one, one with a conjugate or negative bit, one of a tracer), is torch's, and so is every call
that something follows below Python: a transformation of `torch.func`, forward mode AD, a tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from convbench.registry.ops.dtypes import ARITHMETICS
from convbench.registry.ops.op import Op
from convbench.registry.records import Backend
from convbench.registry.routing.autocast import cast_to

Refusal = Callable[[bool, tuple[Any, ...], Mapping[str, Any]], str | None]

_Key = torch._C._TorchDispatchModeKey
_TRACERS = (_Key.PROXY, _Key.FAKE, _Key.FUNCTIONAL)
_KINDS = frozenset({Tensor, nn.Parameter})
_keys: Callable[[Any], Any] = torch._C._dispatch_keys


class _Devices:
    """The types of devices by dispatch keys of tensors on them; None for those of tensors that are not plain."""

    def __init__(self) -> None:
        self.by_keys: dict[int, str | None] = {}


_known = _Devices()


def refusal_of(op: Op, backend: Backend) -> Refusal:
    """A function that says why the backend's record does not claim a call, or None where it does.

    It takes whether a compiler traces the call, whose tensors have a device and a dtype and no more, and the
    arguments.
    """
    names, count, products = frozenset(op.tensors), len(op.tensors), op.multiplies
    seen = set[tuple[Any, ...]]()  # kinds of tensors that were claimed
    claimed = {
        (device, ARITHMETICS[dtype].tensors)
        for device in backend.devices
        for dtype in backend.dtypes_on(device)
        if dtype in ARITHMETICS
    }

    def refusal(compiling: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        cast = products and torch._C._is_any_autocast_enabled()
        if not compiling:
            if reason := _followed():
                return reason
            if not cast and kwargs.keys().isdisjoint(names):
                for value in args[:count]:
                    if value is not None and (type(value) not in _KINDS or _kind(value) not in seen):
                        break
                else:
                    return None
        for at, name in enumerate(op.tensors):
            value = args[at] if at < len(args) else kwargs.get(name)
            if value is None:
                continue
            device = value.device.type if compiling else _plain_on(value)
            if device is None:
                return f"{name} is no plain tensor"
            dtype = cast_to(device, value.dtype) if cast else value.dtype
            if (device, dtype) not in claimed:
                return f"{str(dtype).removeprefix('torch.')} on {device}, which the backend does not claim"
            if not (cast or compiling):
                seen.add(_kind(value))
        return None

    return refusal


def _followed() -> str | None:
    """What follows the calls of this thread below Python."""
    if torch._C._are_functorch_transforms_active():
        return "a call under a transformation of torch.func"
    if forward_ad._current_level >= 0:
        return "a call under forward mode AD"
    if torch._C._get_tracing_state() is not None or (
        torch._C._len_torch_dispatch_stack()
        and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
    ):
        return "a call that is traced"
    return None


def _kind(value: Any) -> tuple[Any, ...]:
    """All that a claim depends on, but for autocast."""
    return type(value), _keys(value).raw_repr(), value.dtype


def _plain_on(value: Any) -> str | None:
    """The type of the device that a plain tensor is on; None for anything else."""
    if type(value) not in _KINDS:
        return None
    keys = _keys(value).raw_repr()
    devices = _known.by_keys
    if keys not in devices:
        plain = torch.empty(0, device=value.device)
        with torch.inference_mode():
            inference = torch.empty(0, device=value.device)
        alike = {_keys(each).raw_repr() for each in (plain, inference)}
        devices[keys] = value.device.type if keys in alike else None
    return devices[keys]
