"""Checks an op with torch's own tools: `torch.compile` on a routed model, and `torch.library.opcheck`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from convbench.registry.conformance.cases import Case, conformance_cases
from convbench.registry.conformance.diagnosis import crash_message
from convbench.registry.conformance.report import Outcome, State
from convbench.registry.errors import Unsupported
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.dtypes import arithmetic
from convbench.registry.records import Backend
from convbench.registry.routing.dispatch import use_backend

DOES_NOT_COMPILE = "torch.compile does not take it: register it with torch.library, or declare compiles=False"
TORCHS = {
    "aten", "c10d", "inductor", "mkldnn", "mkldnn_prepacked", "onednn", "prim", "prims", "profiler", "quantized",
}  # fmt: skip


def check_torch(backend: Backend, op: str, dtype: str, device: str, seed: int = 0) -> Iterator[Outcome]:
    """Check the first case that the backend supports: compiled, and for the ops registered with torch it calls."""
    from convbench.registry.conformance.verify import check

    for case in conformance_cases(op):
        if check(backend, OPS[op], case, dtype, device, seed).state == "passed":
            yield check_compiled(backend, OPS[op], case, dtype, device, seed)
            yield from check_registered(backend, OPS[op], case, dtype, device, seed)
            return


def check_compiled(backend: Backend, op: Op, case: Case, dtype: str, device: str, seed: int = 0) -> Outcome:
    """Check a case on a compiled model that is routed to the backend: no break in the graph, and right answers.

    The graph is taken and differentiated as for every compiler behind it, and then run as it is.
    """
    from convbench.registry.conformance.verify import check_with

    label = f"torch.compile of {case}"
    if not backend.compiles:
        message = "the backend says that it cannot be compiled (compiles=False)"
        return Outcome(op.name, label, dtype, device, "unsupported", message, kind="compile")
    torch.compiler.reset()
    # nobody calls a fused op: it is what routing makes of neighbours
    model = use_backend(_Call(op.functions[0]), backend) if op.functions else _Call(backend.ops[op.name])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    outcome = check_with(backend, compiled, op, case, dtype, device, seed)
    torch.compiler.reset()
    if outcome.state == "crashed":
        outcome = replace(outcome, cause=DOES_NOT_COMPILE)
    return replace(outcome, case=label, kind="compile", reproduction="")


class _Call(nn.Module):
    """A model that makes one call of an op, as any other would: of torch's function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, **arguments: Any) -> Any:
        return self._function(**arguments)


def check_registered(
    backend: Backend, op: Op, case: Case, dtype: str, device: str, seed: int = 0
) -> Iterator[Outcome]:
    """`torch.library.opcheck` on every op registered with torch that a case calls."""
    arguments = case.arguments(arithmetic(dtype).tensors, torch.device(device), seed)
    for name, call in registered_calls(backend.ops[op.name], arguments).items():
        state: State = "passed"
        message = cause = ""
        try:
            torch.library.opcheck(call[0], *_copied(call[1:], needing=_differentiable(call)))
        except Unsupported as refusal:
            state, message = "unsupported", str(refusal)
        except Exception as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
            state, message, cause = (
                "failed",
                crash_message(error),
                "torch.library.opcheck fails: see its documentation",
            )
        yield Outcome(
            op.name, f"opcheck of {name}", dtype, device, state, message, kind="opcheck", cause=cause
        )


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def registered_calls(implementation: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Call]:
    """The ops registered by others than torch that `implementation` calls, by name, with their first arguments.

    `derived_backward` gives what it registered as `registered`, which is called by compiled code only.
    """
    seen = _Recorder()
    with torch.no_grad(), seen:
        getattr(implementation, "registered", implementation)(**arguments)
    return seen.calls


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, Call] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.name()
        if func.namespace not in TORCHS and name not in self.calls:
            self.calls[name] = (func, *_copied((args, kwargs), needing=False))
        return func(*args, **kwargs)


def _differentiable(call: Call) -> bool:
    """Whether the op has a gradient; one that is called in an `autograd.Function` alone needs none."""
    op, args, kwargs = call
    args, kwargs = _copied((args, kwargs), needing=True)
    leaves = [
        value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad
    ]
    try:
        with torch.enable_grad():
            output = op(*args, **kwargs)
            torch.autograd.grad(output.sum(), leaves, allow_unused=True)
    except Exception:  # noqa: BLE001 - a plugin's code; that its gradients are right is checked with the cases
        return False
    return True


def _copied(value: Any, needing: bool) -> Any:
    """The arguments again, with tensors that need a gradient, or do not."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(needing and value.is_floating_point())
    if isinstance(value, (tuple, list)):
        return type(value)(_copied(item, needing) for item in value)
    if isinstance(value, dict):
        return {name: _copied(item, needing) for name, item in value.items()}
    return value
