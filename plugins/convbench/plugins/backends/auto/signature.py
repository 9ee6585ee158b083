"""A call to decide: everything that its speed could depend on, without the numbers in its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.cases import Case, case_of
from convbench.registry.known_faults import KnownFault, fault_of_case, faults_here
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.window import conv2d_window


@dataclass(frozen=True)
class Memory:
    """A tensor's shape, strides and dtype."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    def random(self, device: torch.device, generator: torch.Generator) -> Tensor:
        """Such a tensor of random normal numbers."""
        reach = zip(self.shape, self.stride, strict=True)
        extent = 1 + sum((size - 1) * step for size, step in reach) if math.prod(self.shape) else 0
        numbers = torch.randn(extent, generator=generator, dtype=torch.float32, device="cpu")
        numbers = numbers.to(device, getattr(torch, self.dtype))
        return numbers.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        op: by name.
        tensors: by name, None for one that is not given.
        options: the other arguments, by name.
        device: the torch device.
        needs: the tensors whose gradients are wanted.
        autocast: autocast is on, so that torch may compute the call in another dtype.
    """

    op: str
    tensors: tuple[tuple[str, Memory | None], ...]
    options: tuple[tuple[str, Any], ...]
    device: str
    needs: tuple[str, ...]
    autocast: bool = False

    @property
    def record(self) -> Op:
        return OPS[self.op]

    @property
    def dtype(self) -> str:
        """Of the first tensor."""
        first = self.tensors[0][1]
        assert first is not None
        return first.dtype

    @property
    def batch(self) -> int:
        """How many images."""
        first = self.tensors[0][1]
        assert first is not None
        return first.shape[0]

    def on(self, batch: int) -> Call:
        """The same on another number of images."""
        (name, first), *others = self.tensors
        assert first is not None
        return replace(self, tensors=((name, replace(first, shape=(batch, *first.shape[1:]))), *others))

    def cropped(self, channels: int, pixels: int) -> Call:
        """The same on the top left corner of one image, at most so many pixels each way, of the first channels.

        Channels are left as they are where they come in groups.
        """
        if self.record.chain:  # one layer takes what another one gives
            return self.on(1)
        few = channels if dict(self.options).get("groups", 1) == 1 else None
        most = {"input": (1, few, pixels, pixels), "weight": (few, few, None, None), "bias": (few,)}

        def corner(name: str, memory: Memory) -> Memory:
            limits = zip(memory.shape, most[name], strict=True)
            return replace(memory, shape=tuple(n if m is None else min(n, m) for n, m in limits))

        tensors = ((name, memory and corner(name, memory)) for name, memory in self.tensors)
        return replace(self, tensors=tuple(tensors))

    def arguments(self, seed: int) -> dict[str, Any]:
        """Random tensors, leaves where a gradient is wanted, and the other arguments, in the op's order."""
        generator = torch.Generator("cpu").manual_seed(seed)
        device = torch.device(self.device)
        values: dict[str, Any] = {
            name: None if memory is None else memory.random(device, generator)
            for name, memory in self.tensors
        }
        for name in self.needs:
            values[name].requires_grad_()
        values |= dict(self.options)
        return {name: values[name] for name in self.record.signature.parameters}

    @cached_property
    def work(self) -> tuple[int, int]:
        """FLOPs of the forward pass, and numbers in the output.

        Raises:
            Exception: torch refuses the call; it is torch's exception.
        """
        shapes = self._on_meta()
        output = self.record.reference(**shapes)
        return self.record.flops(output, **shapes), output.numel()

    @property
    def case(self) -> Case:
        """The case that verification checks for it."""
        return replace(case_of(self.op, self._on_meta()), needs=self.needs)

    @cached_property
    def fault(self) -> KnownFault | None:
        """A known fault of torch on this machine that affects the call."""
        dtype = self.dtype
        if self.autocast and "weight" in self.record.tensors and dtype != "float64":
            dtype = str(torch.get_autocast_dtype(torch.device(self.device).type)).removeprefix("torch.")
        return fault_of_case(case_of(self.op, self._on_meta()), dtype, self.device) if faults_here() else None

    @property
    def pairs(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] | None:
        """Stride, padding, dilation and groups of a convolution in numbers; None where padding is uneven."""
        if self.op != "conv2d":
            return None
        call = self._on_meta()
        window = conv2d_window(**call)
        if window.before != window.after:
            return None
        return window.stride, window.before, window.dilation, call["groups"]

    def _on_meta(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            name: None
            if memory is None
            else torch.empty_strided(
                memory.shape, memory.stride, dtype=getattr(torch, memory.dtype), device="meta"
            )
            for name, memory in self.tensors
        }
        values |= dict(self.options)
        return {name: values[name] for name in self.record.signature.parameters}

    def __str__(self) -> str:
        shapes = [
            "x".join(map(str, memory.shape))
            for name, memory in self.tensors
            if memory is not None and not name.startswith("bias")
        ]
        defaults = {name: each.default for name, each in self.record.signature.parameters.items()}
        options = [
            f"{name}={_text(value)}"
            for name, value in self.options
            if value not in (defaults[name], (defaults[name], defaults[name]))
        ]
        return f"{self.op} {' '.join([' * '.join(shapes), *options])}"


def call_of(op: Op, seen: tuple[Any, ...]) -> Call:
    """The call of a key: threads, autocast, whether gradients are recorded, and every argument in order.

    A tensor stands there as its shape, stride, dtype, device, and whether it requires a gradient.
    """
    _, autocast, recording, *values = seen
    wanted = len(op.signature.parameters)
    at = len(op.tensors) - wanted
    values[at:at] = [None] * (wanted - len(values))  # parameters of layers that are not there
    tensors: list[tuple[str, Memory | None]] = []
    options = []
    needs = []
    device = ""
    for name, value in zip(op.signature.parameters, values, strict=True):
        if name not in op.tensors:
            options.append((name, value))
        elif value is None:
            tensors.append((name, None))
        else:
            shape, stride, dtype, place, requires_grad = value
            tensors.append((name, Memory(tuple(shape), tuple(stride), str(dtype).removeprefix("torch."))))
            device = device or str(place)
            if recording and requires_grad:
                needs.append(name)
    return Call(op.name, tuple(tensors), tuple(options), device, tuple(needs), autocast)


def _text(value: Any) -> str:
    if isinstance(value, tuple) and any(isinstance(each, tuple) for each in value):  # layers
        return ", ".join(name for name, *_ in value)
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if len(set(value)) > 1 else str(value[0])
    return str(value)
