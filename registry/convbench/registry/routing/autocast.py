"""Casts the arguments of a routed call as `torch.autocast` casts those of torch's own op.

Autocast acts below Python, on torch's own ops: a backend called in their place would get float32 where torch's op
gets bfloat16. So a routed call follows the same rule: convolutions are computed in autocast's dtype, pooling keeps
its dtype. Inside the backend autocast is off, so that a backend may still sum in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convbench.registry.ops.contract import Op


def cast_to(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products of such tensors are computed, which may be autocast's."""
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device):
        return dtype
    return torch.get_autocast_dtype(device) if dtype.is_floating_point and dtype != torch.float64 else dtype


def autocasting(op: Op, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """The same implementation, with what it is given cast as autocast would; as it is where no autocast is on."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return implementation(*args, **kwargs)
        kind = (args[0] if args else kwargs["input"]).device.type
        if not torch.is_autocast_enabled(kind):
            return implementation(*args, **kwargs)
        if op.multiplies:
            args = tuple(_cast(kind, value) for value in args)
            kwargs = {name: _cast(kind, value) for name, value in kwargs.items()}
        with torch.autocast(kind, enabled=False):
            return implementation(*args, **kwargs)

    return call


def _cast(device: str, value: Any) -> Any:
    return value.to(cast_to(device, value.dtype)) if isinstance(value, Tensor) else value
