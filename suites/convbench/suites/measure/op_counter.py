"""Count the work of a network: operations, and the least that must be moved to and from memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass
class Work:
    """What one layer's forward or backward pass costs at least: FLOPs, and bytes read and written."""

    name: str
    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class OpCounts:
    """The work of one batch, layer by layer in the order of execution."""

    forward: tuple[Work, ...]
    backward: tuple[Work, ...]

    @property
    def forward_flops(self) -> int:
        """Of the forward pass."""
        return sum(work.flops for work in self.forward)

    @property
    def step_flops(self) -> int:
        """Of both passes."""
        return sum(work.flops for work in self.step)

    @property
    def step_bytes(self) -> int:
        """Moved by both passes."""
        return sum(work.bytes for work in self.step)

    @property
    def step(self) -> tuple[Work, ...]:
        """Both passes."""
        return self.forward + self.backward


def count_ops(model: nn.Module, images: Tensor) -> OpCounts:
    """Count both passes on this batch, the model run as plain torch; the loss and the update are left out.

    FLOPs are two for every multiplication and addition of convolutions and matrix products, as torch's own
    counter has it; element-wise work and pooling are not counted. Bytes are the tensors a layer is given, its
    weights and what it makes of them, each read or written once; so a view of a tensor moves nothing.
    """
    forward, backward = _Counter(), _Counter()
    with forward:
        scores = model(images)
    if scores.requires_grad:  # a pooling alone has no parameters
        grad_output = torch.ones_like(scores)
        with backward:
            scores.backward(grad_output)
    model.zero_grad()
    return OpCounts(tuple(forward.layers), tuple(backward.layers))


@dataclass
class _Touched:
    """What the current layer has read and written; the tensors are kept alive, so that no address is reused."""

    tensors: list[Tensor] = field(default_factory=list)
    read: set[tuple[int, int, int]] = field(default_factory=set)
    written: set[tuple[int, int, int]] = field(default_factory=set)


class _Counter(TorchDispatchMode):
    """Sees every op that runs. In a backward pass the ops of one node of the graph are one layer's."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Work] = []
        self._node: Any = None
        self._touched = _Touched()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        given = _tensors((args, kwargs))
        made = _tensors(output)
        mutated = func._schema.is_mutable
        if not mutated and {_storage(tensor) for tensor in made} <= {_storage(tensor) for tensor in given}:
            return output  # a view
        if func._overloadpacket.__name__.startswith(("empty", "new_empty")):  # nothing is written there yet
            return output
        node = torch._C._current_autograd_node()
        if node is not None and node.name().endswith("AccumulateGrad"):  # a copy because we hold the gradient
            return output
        if node is None or node is not self._node:
            self.layers.append(Work(func._overloadpacket.__name__))
            self._node, self._touched = node, _Touched()
        layer, touched = self.layers[-1], self._touched
        touched.tensors += given + made
        for tensor in given:
            if (place := _place(tensor)) not in touched.read | touched.written:
                touched.read.add(place)
                layer.bytes += _size(tensor)
        for tensor in made:
            if (place := _place(tensor)) not in touched.written:
                touched.written.add(place)
                layer.bytes += _size(tensor)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            layer.flops += formula(*args, **kwargs, out_val=output)
        return output


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> tuple[int, int, int]:
    return _storage(tensor), int(tensor.storage_offset()), tensor.numel()


def _size(tensor: Tensor) -> int:
    """The bytes that a tensor really has in memory: an expanded one repeats fewer."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
