"""Routes the convolutions and poolings of a torch model to a backend, without changing the model.

While a routed model runs forward, calls of the contract's ops go to the backend. All other calls, and those that
the backend refuses with `Unsupported`, run on torch. A torch function mode intercepts the calls, so that
functional calls in any module's `forward` are routed as well as `nn.Conv2d`, and `torch.compile` traces it.
Models that consist of torch's own layers need no mode (see `convbench.registry.routing.patching`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from convbench.registry.discovery.plugins import discover
from convbench.registry.errors import PluginError, Unsupported, choices
from convbench.registry.known_faults import KnownFault, safe_torch_op
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.fused import decompose
from convbench.registry.records import Backend
from convbench.registry.routing.autocast import autocasting
from convbench.registry.routing.fusion import fused_copy, fused_forwards
from convbench.registry.routing.patching import PatchedForwards, Route, patched_forwards


@dataclass
class Tally:
    """How many calls of one op were made, and how many the backend served."""

    calls: int = 0
    served_calls: int = 0
    flops: int = 0
    served_flops: int = 0
    refusals: set[str] = field(default_factory=set)
    workarounds: set[str] = field(default_factory=set)  # what torch computes in another dtype

    def workaround(self, fault: KnownFault) -> None:
        """Record a call that torch computes in another dtype because of a known fault in its own."""
        self.workarounds.add(f"{', '.join(fault.ops)} in {fault.compute_in} for the {fault}")

    def clear(self) -> None:
        """Back to nothing counted."""
        self.calls = self.served_calls = self.flops = self.served_flops = 0
        self.refusals.clear()
        self.workarounds.clear()


@dataclass
class _PassCount:
    """How many forward passes were counted; a module's own attributes take microseconds to set."""

    made: int = 0


class Routed(nn.Module):
    """A model whose contract ops are computed by `backend`.

    `model` is the module that was given, its code and parameters as they were; after a change of its modules
    call `train()` or `eval()`, which look at them anew. With `fuse`, neighbours that one op of the backend
    computes together are one call (see `convbench.registry.routing.fusion`). The counts cover every forward pass
    since the last `reset_counts()`, `passes` of them, except compiled ones, which run no Python to count in.
    """

    def __init__(self, model: nn.Module, backend: Backend, fuse: bool = False) -> None:
        super().__init__()
        self.model = model
        self.backend = backend
        self.fuse = fuse
        self.tallies = {name: Tally() for name in OPS}
        self._mode = _Mode(backend, self.tallies)
        self._passes = _PassCount()
        self._patch()

    def _patch(self) -> None:
        self._patched_model = (self.model,)
        fused = fused_forwards(self.model, self._fused(self._mode.counted))
        self._patched = patched_forwards(self.model, self._mode.counted, fused)
        self._fused_only = PatchedForwards(fused)
        # in a tuple, as above: torch does not search tuples for parameters
        self._fused_copy = (fused_copy(self.model, self._fused(self._mode.uncounted)),) if fused else ()

    def _fused(self, routes: Mapping[str, Route]) -> dict[str, Route]:
        """Of these routes those of fused ops that are wanted, and that the backend has."""
        offered = self.backend.ops if self.fuse else {}
        return {name: route for name, route in routes.items() if OPS[name].base and name in offered}

    def __deepcopy__(self, memo: dict[int, Any]) -> Routed:
        copy = Routed(deepcopy(self.model, memo), self.backend, self.fuse)  # its routes count for the copy
        copy.training = self.training
        return copy

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            with self._mode:
                model = self._fused_copy[0] if self._fused_copy else self.model
                return model(*args, **kwargs)
        self._passes.made += 1
        model = self.model
        if model is not self._patched_model[0]:  # a replica of `DataParallel` has layers of its own
            self._patch()
        if self._patched is not None:
            with self._patched:
                return model(*args, **kwargs)
        with self._mode, self._fused_only:
            return model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._patch()
        return self

    @property
    def passes(self) -> int:
        """Forward passes that were counted."""
        return self._passes.made

    @property
    def calls(self) -> int:
        """Calls of the contract's ops, on the backend and on torch."""
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

    @property
    def workarounds(self) -> list[str]:
        """What torch computed in another dtype because of a known fault, each once."""
        return sorted({workaround for tally in self.tallies.values() for workaround in tally.workarounds})

    def reset_counts(self) -> None:
        """Start counting anew."""
        self._passes.made = 0
        for tally in self.tallies.values():
            tally.clear()


def use_backend(model: nn.Module, backend: Backend | str, *, fuse: bool = False) -> Routed:
    """Route the contract's ops in `model` to `backend`, given as a record or by its registered name.

    With `fuse`, its fused ops serve the layers that they stand for, where these are next to each other.

    Raises:
        UnknownName: no backend of that name is registered.
        PluginError: the backend offers an op that is not in the contract.
    """
    backend = discover().backend(backend) if isinstance(backend, str) else backend
    for name in backend.ops:
        if name not in OPS:
            raise PluginError(f"backend {backend.name!r} offers an unknown op {name!r}; {choices(name, OPS)}")
    return Routed(model, backend, fuse)


class _Mode(TorchFunctionMode):
    def __init__(self, backend: Backend, tallies: dict[str, Tally]) -> None:
        super().__init__()
        self.counted: dict[str, Route] = {}
        self.uncounted: dict[str, Route] = {}
        self._routes: dict[Route, Route] = {}
        for op in OPS.values():  # a fused op comes after the one that it is fused of
            self.counted[op.name] = counted = _counted(op, backend, tallies[op.name], self.counted)
            self.uncounted[op.name] = uncounted = _uncounted(op, backend, self.uncounted)
            for function in op.functions:
                self._routes[function] = _route(counted, uncounted)

    def __torch_function__(
        self, func: Route, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        route = self._routes.get(func, func)
        return route(*args, **kwargs) if kwargs else route(*args)


def _route(counted: Route, uncounted: Route) -> Route:
    """What is called in place of a function of torch; compiled code has nothing to count in."""

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("return_indices", None)  # always False here: F.max_pool2d names it, the contract does not
        return uncounted(*args, **kwargs) if torch.compiler.is_compiling() else counted(*args, **kwargs)

    return call


def _fallback(op: Op, routes: Mapping[str, Route], tally: Tally | None = None) -> Route:
    """What computes a call that the backend does not: torch, or for a fused op its two parts."""
    base = op.base
    if base is None:
        return safe_torch_op(op, None if tally is None else tally.workaround)
    return lambda *args, **kwargs: decompose(op, routes, args, kwargs)


def _backend_op(op: Op, backend: Backend) -> Route | None:
    """The backend's op, given what autocast would give torch's."""
    implementation = backend.ops.get(op.name)
    return None if implementation is None else autocasting(op, implementation)


def _uncounted(op: Op, backend: Backend, routes: Mapping[str, Route]) -> Route:
    """The backend's op, or the fallback where it refuses or has none."""
    implementation, fallback = _backend_op(op, backend), _fallback(op, routes)
    if implementation is None:
        return fallback

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return implementation(*args, **kwargs)
        except Unsupported:
            return fallback(*args, **kwargs)

    return call


def _counted(op: Op, backend: Backend, tally: Tally, routes: Mapping[str, Route]) -> Route:
    """The same with the tally kept; two ops in the place of a fused one count as the two that they are."""
    implementation, fallback = _backend_op(op, backend), _fallback(op, routes, tally)

    def call(*args: Any, **kwargs: Any) -> Any:
        served = False
        if implementation is not None:
            try:
                output, served = implementation(*args, **kwargs), True
            except Unsupported as refusal:
                tally.refusals.add(f"{op.name}: {refusal}")
        if not served:
            output = fallback(*args, **kwargs)
            if op.base is not None:
                return output
        flops = op.flops(output, *args, **kwargs)
        tally.calls += 1
        tally.flops += flops
        if served:
            tally.served_calls += 1
            tally.served_flops += flops
        return output

    return call
