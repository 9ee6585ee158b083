"""The fused calls that a network will make of a backend, to be verified before it makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convbench.registry.conformance.cases import Case, case_of
from convbench.registry.errors import Unsupported
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.records import Backend
from convbench.registry.routing.dispatch import use_backend


def fused_cases(model: nn.Module, backend: Backend, *inputs: Tensor) -> list[Case]:
    """The distinct fused calls in one forward pass of a model routed to a backend with `fuse`, in order.

    The pass runs under `no_grad` in the model's own mode, on torch.
    """
    cases: dict[Case, None] = {}
    recording = {name: _recording(OPS[name], cases) for name in backend.ops if name in OPS and OPS[name].base}
    with torch.no_grad():
        use_backend(model, replace(backend, load=lambda: recording), fuse=True)(*inputs)
    return list(cases)


def _recording(op: Op, cases: dict[Case, None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        cases[case_of(op.name, op.bind(args, kwargs))] = None
        if op.chain:
            raise Unsupported("its layers are recorded as well, for batches that it is not for")
        return op.reference(*args, **kwargs)

    return call
