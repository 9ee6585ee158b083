"""Where the calls of a forward pass go: to the backend, or to torch; and how many went where.

A torch function mode sees every call of the pass's thread, from whatever code: layers, functions, hooks. Modes of
the user's see the calls before it does, as they see those of a model that is not routed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext

from convbench.registry.errors import Unsupported
from convbench.registry.known_faults import KnownFault, safe_torch_op
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.sequential import in_parts
from convbench.registry.records import Backend
from convbench.registry.routing.autocast import autocasting
from convbench.registry.routing.claims import refusal_of
from convbench.registry.routing.stock import Route


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
        if not torch.compiler.is_compiling():
            self.workarounds.add(f"{', '.join(fault.ops)} in {fault.compute_in} for the {fault}")

    def clear(self) -> None:
        """Back to nothing counted."""
        self.calls = self.served_calls = self.flops = self.served_flops = 0
        self.refusals.clear()
        self.workarounds.clear()


class Routes(TorchFunctionMode):
    """The way of every call of the contract's ops, and the counts; threads may share it.

    Attributes:
        by_op: for each op a function that takes what torch's does.
        tallies: for each op the calls since `reset_counts`.
        passes: forward passes since then.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.tallies = {name: Tally() for name in OPS}
        self.passes = 0
        self.by_op: dict[str, Route] = {}
        self._by_function: dict[Callable[..., Any], Route] = {}
        self._by_function[torch._C._set_grad_enabled] = self._set_grad_enabled
        self._counting = Lock()
        for op in OPS.values():  # a fused op comes after the one that it is fused of
            self.by_op[op.name] = self._route(op, backend)
            for function in op.functions:
                self._by_function[function] = self._called(op)

    def begin_pass(self) -> None:
        """Count a forward pass."""
        with self._counting:
            self.passes += 1

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, and route what it calls; where calls are routed already, that is enough."""
        if self.is_active():
            return function(*args, **kwargs)
        with self._below_other_modes():
            return function(*args, **kwargs)

    @contextmanager
    def _below_other_modes(self) -> Iterator[None]:
        """Route calls, each when the modes of the user's have seen it and pass it on."""
        modes = _taken_off()
        watching = next((at for at, mode in enumerate(modes) if not _watches(mode)), len(modes))
        _put_on([*modes[:watching], self, *modes[watching:]])
        try:
            yield
        finally:
            _put_on([mode for mode in _taken_off() if mode is not self])

    def reset_counts(self) -> None:
        """Start counting anew."""
        with self._counting:
            self.passes = 0
            for tally in self.tallies.values():
                tally.clear()

    def __torch_function__(
        self, func: Route, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        route = self._by_function.get(func, func)
        return route(*args, **kwargs) if kwargs else route(*args)

    def is_active(self) -> bool:
        """Whether the calls of this thread are routed."""
        return bool(torch._C._len_torch_function_stack()) and any(
            mode is self for mode in _get_current_function_mode_stack()
        )

    def _called(self, op: Op) -> Route:
        """What is called in place of a function of torch."""
        route, fallback = self.by_op[op.name], self._fallback(op)

        def call(*args: Any, **kwargs: Any) -> Any:
            # always False here: F.max_pool2d names it, the contract does not
            kwargs.pop("return_indices", None)
            if (
                torch.compiler.is_compiling()
                or (
                    torch.is_grad_enabled()
                    and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
                )
                or self._recompute_routed(depth=sys.maxsize)
            ):
                return route(*args, **kwargs)
            self.tallies[op.name].refusals.add(f"{op.name}: a checkpoint of an unknown version of torch")
            output = fallback(*args, **kwargs)
            self._count(op, False, output, args, kwargs)
            return output

        return call

    def _set_grad_enabled(self, enabled: bool) -> None:
        """As torch's; a checkpoint of the reentrant kind begins with it."""
        if not torch.compiler.is_compiling():
            self._recompute_routed(depth=5)
        torch._C._set_grad_enabled(enabled)

    def _route(self, op: Op, backend: Backend) -> Route:
        """The backend's op; the fallback where it is missing or refuses, or the record does not claim the call."""
        tally, fallback = self.tallies[op.name], self._fallback(op)
        offered = backend.ops.get(op.name)
        implementation = None if offered is None else autocasting(op, offered)
        refusal = refusal_of(op, backend)

        def call(*args: Any, **kwargs: Any) -> Any:
            served, compiling = False, torch.compiler.is_compiling()
            if implementation is not None:
                reason = refusal(compiling, args, kwargs)
                if reason is None:
                    try:
                        output, served = implementation(*args, **kwargs), True
                    except Unsupported as unsupported:
                        reason = str(unsupported)
                if not (served or compiling):
                    tally.refusals.add(f"{op.name}: {reason}")
            if not served:
                output = fallback(*args, **kwargs)
                if op.base is not None:  # counted as the ops that it is then
                    return output
            if not compiling:
                self._count(op, served, output, args, kwargs)
            return output

        return call

    def _fallback(self, op: Op) -> Route:
        """What computes a call that the backend does not: torch, or for a fused op its parts."""
        if op.base is None:
            return safe_torch_op(op, self.tallies[op.name].workaround)
        return in_parts(op, self.by_op)

    def _count(self, op: Op, served: bool, output: Any, args: Any, kwargs: Any) -> None:
        if not isinstance(output, Tensor) or torch._C._get_tracing_state() is not None:
            return  # a tracer's, of a call that is not made now
        tally, flops = self.tallies[op.name], op.flops(output, *args, **kwargs)
        with self._counting:
            tally.calls += 1
            tally.flops += flops
            if served:
                tally.served_calls += 1
                tally.served_flops += flops

    def _recompute_routed(self, depth: int) -> bool:
        """Have the checkpoints that a call is made in routed as well when backward computes them again.

        Backward runs outside of the pass, and torch has no way to say what a checkpoint is to be computed under.
        The function that it keeps for that is found on the stack, in the frames of `torch.utils.checkpoint`, of
        which the innermost is at most `depth` frames away. Those outside of the pass are not the model's.

        Returns:
            False where no such function is in the frames of a checkpoint: torch would compute it again.
        """
        frame: FrameType | None = sys._getframe(2)
        known, found = True, False
        while frame is not None and depth > 0:
            if frame.f_code is Routes.run.__code__ and frame.f_locals["self"] is self:
                break
            if frame.f_globals is vars(torch.utils.checkpoint):
                found = self._wrap_what_is_in(frame.f_locals) or found
                if frame.f_code.co_qualname == "checkpoint":  # the outermost of its frames
                    known, found = known and found, False
            frame, depth = frame.f_back, depth - 1
        return known

    def _wrap_what_is_in(self, names: Mapping[str, Any]) -> bool:
        if "gen" in names:
            generator = getattr(names["gen"], "gi_frame", None)
            return generator is not None and self._wrap(generator.f_locals.get("new_frame"), "recompute_fn")
        return "run_function" in names and self._wrap(
            names.get("ctx"), "run_function"
        )  # of the reentrant one

    def _wrap(self, checkpoint: Any, name: str) -> bool:
        function = getattr(checkpoint, name, None)
        routed_by = getattr(function, "routed_by", ())
        if function is not None and self not in routed_by:
            recompute = partial(self.run, function)
            recompute.routed_by = (*routed_by, self)  # type: ignore[attr-defined]
            setattr(checkpoint, name, recompute)
        return function is not None


def is_watched() -> bool:
    """Whether a function mode of the user's sees the calls of this thread."""
    return bool(torch._C._len_torch_function_stack()) and any(
        map(_watches, _get_current_function_mode_stack())
    )


def _watches(mode: TorchFunctionMode) -> bool:
    return not isinstance(mode, (Routes, DeviceContext))


def _taken_off() -> list[TorchFunctionMode]:
    """All function modes of this thread, the one that sees calls first to begin with; none is on then."""
    return [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]


def _put_on(modes: list[TorchFunctionMode]) -> None:
    for mode in reversed(modes):
        _push_mode(mode)
