"""A graph on the CPU: what a CUDA graph does, with the same interface, and with the same limits.

While it is captured, every torch op that reaches the dispatcher is noted with its very tensors. A replay runs them
again and writes what they return into the same memory; nothing of Python's runs again. So whatever a step does on
the host, such as to choose the next batch or to hand over a learning rate, is done once only, as on a GPU, and
reading a number back cannot be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from convbench.registry import Unsupported


class Tape(TorchDispatchMode):
    """Notes the ops that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = dict(kwargs or {})
        output = func(*args, **kwargs)
        held = lambda tree: tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)  # noqa: E731
        with torch.utils._python_dispatch._disable_current_modes():
            self.calls.append((func, held(args), held(kwargs), held(output)))
        return output

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, outputs in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def capture(device: torch.device, work: Callable[[], None], warm_up: int) -> Callable[[], None]:
    """In place of `convbench.suites.measure.devices.capture`: what was captured is not done yet, as on a GPU."""
    for _ in range(warm_up):
        work()
    tape = Tape()
    try:
        with tape:
            work()
    except RuntimeError as error:
        raise Unsupported(f"its training step cannot be captured in a graph: {error}") from error
    return tape.replay
