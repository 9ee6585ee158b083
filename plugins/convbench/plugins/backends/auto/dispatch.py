"""The ops of `auto`: each looks a call up in a dictionary, and the chosen implementation computes it.

The key of the dictionary takes a microsecond or two to make. A call with a new key is described in full
(`signature.py`) and decided. Three kinds of calls are not timed: those that are traced or captured, those whose
tensors hold no numbers, and those so small that all backends take the same time. For these a stored decision is
used; if there is none, torch computes the call.

One thread at a time decides, and the others wait: threads that time calls at once would slow each other down, and
trying backends out changes settings of the process for a moment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import index
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from convbench.plugins.backends.auto.cache_key import lasting, passing
from convbench.plugins.backends.auto.candidates import (
    APART,
    BASELINE,
    Candidate,
    candidates_of,
    layer_by_layer,
)
from convbench.plugins.backends.auto.decisions import Decision, directory, key_of, load, save, whole
from convbench.plugins.backends.auto.progress import Progress
from convbench.plugins.backends.auto.signature import Call, call_of
from convbench.plugins.backends.auto.tuner import choose, implementation
from convbench.registry import Unsupported, discover
from convbench.registry.known_faults import safe_torch_op
from convbench.registry.ops.call_arguments import unobserved
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.sequential import by_position

SMALL = 100_000  # FLOPs of a forward pass: below, most of the time is overhead, and the baseline computes it
MOST = 10_000  # calls that are kept; no network has more
PLAIN = frozenset({Tensor, torch.nn.Parameter})  # subclasses may hold no numbers, or more than numbers
Implementation = Callable[..., Any]
_deciding = threading.RLock()
# a child process has no thread that decides, and would wait for its lock for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_deciding=threading.RLock()))
Chooser = Callable[[Call, Mapping[str, Candidate]], Decision]

# the nesting depth of `torch.func`'s transformations, or None; an `autograd.Function` may refuse them
_level: Callable[[], int | None] = torch._C._functorch.maybe_current_level


@dataclass(frozen=True)
class Plan:
    """A call with its decision, and the function that computes it."""

    call: Call
    decision: Decision
    compute: Implementation

    def __str__(self) -> str:
        """The backend that computes it, and the dtype where torch avoids a known fault."""
        fault = self.call.fault
        if fault is None or BASELINE not in self.decision.winner.values():
            return str(self.decision)
        return f"{self.decision} in {fault.compute_in} for the {fault}"


class Decisions:
    """Decides calls of all ops, and keeps the decisions of this process.

    Args:
        candidates: the backends to choose from, the baseline first.
        root: the directory of the decisions on disk.
        chooser: decides a call that has no stored decision; `choose`, which logs its progress, if not given.
    """

    def __init__(
        self, candidates: Callable[[], Mapping[str, Candidate]], root: Path, chooser: Chooser | None = None
    ) -> None:
        self._load = candidates
        self._root = root
        self._progress = Progress(root)
        self._chooser = chooser or partial(choose, say=self._progress)
        self._larger: dict[Call, Plan] = {}  # by the same call on no images: the one on the most

    @cached_property
    def _apart(self) -> Mapping[str, Candidate]:
        """Computes fused ops by the ops that they stand for, for which backends are chosen as well."""
        return {APART: layer_by_layer({name: Dispatched(op, self) for name, op in OPS.items()})}

    @cached_property
    def candidates(self) -> Mapping[str, Candidate]:
        return self._load()

    @cached_property
    def _lasting(self) -> Mapping[str, Any]:
        return lasting(self.candidates)

    def _candidates_for(self, call: Call) -> Mapping[str, Candidate]:
        """The candidates for a call; if torch has a known fault there, torch computes it in another dtype."""
        found = self.candidates if call.record.base is None else {**self.candidates, **self._apart}
        return found if call.fault is None else {**found, BASELINE: found[BASELINE].avoiding(call.fault)}

    def plan(self, call: Call, may_time: bool) -> Plan | None:
        """The plan for a call; None if it has no decision and may not be timed now."""
        try:
            flops, _ = call.work
        except Exception:  # noqa: BLE001 - torch refuses the call; computing it raises torch's own error
            return None
        if call.autocast:
            return self._planned(call, whole(BASELINE, rule="autocast computes it in another dtype"))
        if flops < SMALL:
            return self._planned(call, whole(BASELINE, rule="a small call"))
        key = key_of(call, {**self._lasting, **passing(call.device)})
        kind = torch.device(call.device).type
        able = {
            name: each
            for name, each in self._candidates_for(call).items()
            if name == BASELINE or each.claims(call.op, kind, call.dtype)
        }
        known = load(self._root, key)
        if known is not None and able.keys() >= {*known.winner.values()}:  # somebody may have edited it
            try:
                return self._planned(call, known)
            except (KeyError, AssertionError):  # it is no decision of such a call
                pass
        larger = self._larger.get(call.on(0))
        # the last batch of an epoch is smaller: it is not worth timing
        if larger is not None and larger.call.batch > call.batch:
            return Plan(call, replace(larger.decision, rule="as for more images"), larger.compute)
        if not may_time:
            return None
        try:
            with self._progress.of(call):
                decision = self._chooser(call, able)
        except torch.OutOfMemoryError:  # there is memory for one such call, but not for two
            return self._planned(call, whole(BASELINE, rule="no memory to try it out"))
        if decision.steady:
            save(self._root, key, call, decision)
        return self._planned(call, decision)

    def _planned(self, call: Call, decision: Decision) -> Plan:
        plan = Plan(call, decision, implementation(call, decision.winner, self._candidates_for(call)))
        if not decision.rule:
            images = self._larger.get(call.on(0))
            if images is None or images.call.batch <= call.batch:
                self._larger[call.on(0)] = plan
        return plan


class Dispatched:
    """An op that passes each call to the implementation that was chosen for it."""

    def __init__(self, op: Op, decisions: Decisions) -> None:
        self._op = op
        self._decisions = decisions
        # torch, and another dtype where torch has a known fault
        self._baseline = by_position(safe_torch_op(op)) if op.chain else safe_torch_op(op)
        self._fused = op.base is not None
        self._plans: dict[Any, Plan] = {}
        self._computes: dict[Any, Implementation] = {}
        self._constants = (
            SimpleNamespace()
        )  # what compiled code calls; it would also depend on a list's length
        parameters = op.signature.parameters
        self._names = tuple(parameters)
        self._tensors = len(op.tensors) - len(parameters)  # which come first, up to there
        self._defaults = tuple(parameter.default for parameter in parameters.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._compiled(*args, **kwargs)
        if self._op.chain and len(kwargs) == 1 and "layers" in kwargs:
            args = *args, kwargs["layers"]
        elif kwargs or len(args) < len(self._names):
            args = tuple(self._op.bind(args, kwargs).values())
        if self._fused and args[0].dtype.itemsize < 4:
            # torch would round in between, and of equals another one may be the largest then
            raise Unsupported("fused ops in half precision: the layers are computed one by one")
        if type(args[0]) not in PLAIN or _level() is not None:
            return self._baseline(*args)
        seen = _seen(args, self._tensors)
        try:
            compute = self._computes.get(seen)
        except TypeError:  # a list, which cannot be looked up
            args = tuple(tuple(value) if isinstance(value, list) else value for value in args)
            seen = _seen(args, self._tensors)
            compute = self._computes.get(seen)
        return (compute or self._decided(seen, args[0]))(*args)

    def choices(self) -> Mapping[str, str]:
        """Every call since this was loaded, in words, with the backend that computes it.

        An evaluation makes the calls of a training without gradients, and other backends may be fastest there.
        """
        return {
            str(plan.call) + ("" if plan.call.needs else " without gradients"): str(plan)
            for plan in list(self._plans.values())
        }

    def _decided(self, seen: Any, tensor: Tensor) -> Implementation:
        """The implementation for a call with a new key; deciding takes time."""
        may_time = _may_time(tensor)
        with _deciding, unobserved():
            if seen in self._computes:  # decided by another thread meanwhile
                return self._computes[seen]
            plan = self._decisions.plan(call_of(self._op, seen), may_time)
            if plan is None:
                return self._baseline
            if len(self._computes) >= MOST:
                self._computes.clear()
                self._plans.clear()
            self._plans[seen] = plan
            self._computes[seen] = plan.compute
            return plan.compute

    def _compiled(self, *args: Any, **kwargs: Any) -> Any:
        """The same while a compiler traces: the implementation is a constant of the compiled code."""
        values = [*args, *self._defaults[len(args) :]]
        for name in kwargs:
            values[self._names.index(name)] = kwargs[name]
        if torch.compiler.is_exporting() and any(map(_of_any_size, values)):
            return self._baseline(*values)  # a decision is for one size
        seen = []
        for value in values:
            if isinstance(value, Tensor):
                shape, stride = (
                    [index(size) for size in value.shape],
                    [index(step) for step in value.stride()],
                )
                seen.append((tuple(shape), tuple(stride), value.dtype, value.device, value.requires_grad))
            else:
                seen.append(value)
        name = _constant(self, torch.is_grad_enabled(), tuple(seen))
        return getattr(self._constants, name)(*values) if name else self._baseline(*values)

    def constant(self, recording: bool, values: tuple[Any, ...]) -> str:
        """The attribute of `_constants` that computes a call; empty if torch computes it.

        The compiler does not trace into this.
        """
        seen = (torch.get_num_threads(), torch._C._is_any_autocast_enabled(), recording, *values)
        with _deciding:
            plan = self._plans.get(seen) or self._decisions.plan(call_of(self._op, seen), may_time=False)
            if plan is None:
                return ""
            self._plans[seen] = plan
            name = f"call_{len(vars(self._constants))}"  # compiled code keeps using it, also after later decisions
            setattr(self._constants, name, plan.compute)
            return name


def _of_any_size(value: Any) -> bool:
    sizes = (*value.shape, *value.stride()) if isinstance(value, Tensor) else (value,)
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _constant(op: Dispatched, recording: bool, values: tuple[Any, ...]) -> str:
    return op.constant(recording, values)


# what `torch.compiler.assume_constant_result` does, which would import the whole compiler, for two seconds
_constant.__dict__["_dynamo_marked_constant"] = True


def _seen(args: tuple[Any, ...], tensors: int) -> Any:
    """The key of a call; the arguments up to `tensors` are tensors, or None. It has to be fast to make."""
    return (
        torch.get_num_threads(),
        torch._C._is_any_autocast_enabled(),
        torch.is_grad_enabled(),
        *[
            None if each is None else (each.shape, each.stride(), each.dtype, each.device, each.requires_grad)
            for each in args[:tensors]
        ],
        *args[tensors:],
    )


def _may_time(tensor: Tensor) -> bool:
    """Whether backends can be timed now."""
    if _get_current_dispatch_mode_stack():  # a mode observes the calls, or nothing is computed
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def dispatched() -> Mapping[str, Dispatched]:
    """The ops, which choose among all registered backends."""
    decisions = Decisions(lambda: candidates_of(discover()), directory())
    return {name: Dispatched(op, decisions) for name, op in OPS.items()}
