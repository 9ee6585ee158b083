"""Put a backend's ops under a plain torch model, without touching the model.

While a routed model runs forward, torch calls of the contract's ops go to the backend. Everything else, and
every call that the backend refuses with `Unsupported`, stays torch's. A torch function mode does it, so that
functional calls inside any module's `forward` are caught as well as `nn.Conv2d`, and `torch.compile` traces
through it; a model of torch's own layers alone takes a shorter way (see `convbench.registry.shadowing`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from convbench.registry.autocasting import autocasting
from convbench.registry.discovery import discover
from convbench.registry.errors import PluginError, Unsupported, choices
from convbench.registry.ops import OPS, Op
from convbench.registry.records import Backend
from convbench.registry.shadowing import shadows


@dataclass
class Tally:
    """How many calls of one op were made, and how many the backend served."""

    calls: int = 0
    served_calls: int = 0
    flops: int = 0
    served_flops: int = 0
    refusals: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Back to nothing counted."""
        self.calls = self.served_calls = self.flops = self.served_flops = 0
        self.refusals.clear()


@dataclass
class _Passes:
    """How many forward passes were counted; a module's own attributes take microseconds to set."""

    made: int = 0


class Routed(nn.Module):
    """A model whose contract ops are computed by `backend`.

    `model` is the module that was given, its code and parameters as they were; after a change of its modules
    call `train()` or `eval()`, which look at them anew. The counts cover every forward pass since the last
    `reset_counts()`, `passes` of them, except compiled ones, which run no Python to count in.
    """

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        super().__init__()
        self.model = model
        self.backend = backend
        self.tallies = {name: Tally() for name in OPS}
        self._mode = _Mode(backend, self.tallies)
        self._shadows = shadows(model, self._mode.counted)
        self._passes = _Passes()

    def __deepcopy__(self, memo: dict[int, Any]) -> Routed:
        copy = Routed(deepcopy(self.model, memo), self.backend)  # the routes of a copy count for the copy
        copy.training = self.training
        return copy

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            with self._mode:
                return self.model(*args, **kwargs)
        self._passes.made += 1
        with self._mode if self._shadows is None else self._shadows:
            return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        self._shadows = shadows(self.model, self._mode.counted)
        return super().train(mode)

    @property
    def passes(self) -> int:
        """Forward passes that were counted."""
        return self._passes.made

    @property
    def calls(self) -> int:
        """Calls of the contract's ops, by whomever they were computed."""
        return sum(tally.calls for tally in self.tallies.values())

    @property
    def served_calls(self) -> int:
        """Those that the backend computed; the others fell back to torch."""
        return sum(tally.served_calls for tally in self.tallies.values())

    @property
    def served_flops_fraction(self) -> float | None:
        """The backend's share of the FLOPs of these calls, 0 to 1; None where there was no such call."""
        total = sum(tally.flops for tally in self.tallies.values())
        served = sum(tally.served_flops for tally in self.tallies.values())
        return served / total if total else None

    @property
    def served(self) -> str:
        """The share of every op that was called, such as `conv2d 2/2, avg_pool2d 0/2`."""
        return ", ".join(
            f"{name} {tally.served_calls}/{tally.calls}"
            for name, tally in self.tallies.items()
            if tally.calls
        )

    @property
    def served_flops(self) -> str:
        """The share of every op's FLOPs, 0 to 1, such as `conv2d 0.853, avg_pool2d 0`."""
        return ", ".join(
            f"{name} {tally.served_flops / tally.flops:.9g}"
            for name, tally in self.tallies.items()
            if tally.flops
        )

    @property
    def refusals(self) -> list[str]:
        """Why calls fell back to torch, each reason once."""
        return sorted({reason for tally in self.tallies.values() for reason in tally.refusals})

    def reset_counts(self) -> None:
        """Start counting anew."""
        self._passes.made = 0
        for tally in self.tallies.values():
            tally.clear()


def use_backend(model: nn.Module, backend: Backend | str) -> Routed:
    """Route the contract's ops in `model` to `backend`, given as a record or by its registered name.

    Raises:
        UnknownName: no backend of that name is registered.
        PluginError: the backend offers an op that is not in the contract.
    """
    backend = discover().backend(backend) if isinstance(backend, str) else backend
    for name in backend.ops:
        if name not in OPS:
            raise PluginError(f"backend {backend.name!r} offers an unknown op {name!r}; {choices(name, OPS)}")
    return Routed(model, backend)


class _Mode(TorchFunctionMode):
    def __init__(self, backend: Backend, tallies: dict[str, Tally]) -> None:
        super().__init__()
        self.counted: dict[str, Callable[..., Any]] = {}
        self._routes: dict[Callable[..., Any], Callable[..., Any]] = {}
        for op in OPS.values():
            self.counted[op.name] = counted = _counted(op, backend, tallies[op.name])
            uncounted = backend.ops.get(op.name)
            uncounted = autocasting(op, uncounted) if uncounted is not None else None
            for function in op.functions:
                self._routes[function] = _route(counted, uncounted, function)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        route = self._routes.get(func, func)
        return route(*args, **kwargs) if kwargs else route(*args)


def _route(
    counted: Callable[..., Any], uncounted: Callable[..., Any] | None, function: Callable[..., Any]
) -> Callable[..., Any]:
    """What is called in place of `function`; compiled code has nothing to count in."""

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("return_indices", None)  # always False here: F.max_pool2d names it, the contract does not
        if not torch.compiler.is_compiling():
            return counted(*args, **kwargs)
        if uncounted is not None:
            try:
                return uncounted(*args, **kwargs)
            except Unsupported:
                pass
        return function(*args, **kwargs)

    return call


def _counted(op: Op, backend: Backend, tally: Tally) -> Callable[..., Any]:
    """The backend's op, torch's where it refuses or has none, with the tally kept."""
    implementation, torchs = backend.ops.get(op.name), op.reference
    implementation = autocasting(op, implementation) if implementation is not None else None

    def call(*args: Any, **kwargs: Any) -> Any:
        served = False
        if implementation is not None:
            try:
                output, served = implementation(*args, **kwargs), True
            except Unsupported as refusal:
                tally.refusals.add(f"{op.name}: {refusal}")
        if not served:
            output = torchs(*args, **kwargs)
        flops = op.flops(output, *args, **kwargs)
        tally.calls += 1
        tally.flops += flops
        if served:
            tally.served_calls += 1
            tally.served_flops += flops
        return output

    return call
