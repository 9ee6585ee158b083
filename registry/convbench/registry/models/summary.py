"""A network layer by layer: class, output shape, parameters, FLOPs and receptive field."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convbench.registry.errors import UsageError
from convbench.registry.models.receptive_field import Field, Reach, ReceptiveFields, tensors

# What a network says to an input it was not made for: torch's own words, or an assertion of its author's.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


@dataclass(frozen=True)
class Row:
    """One call of one layer.

    Attributes:
        name: as in `model.get_submodule(name)`.
        layer: its class.
        output_shape: of its first output tensor; empty if it returns none.
        parameters: numbers to learn, without those of an earlier row for the same layer.
        flops: two for each multiplication and addition of convolutions and matrix products.
        receptive_field: (height, width) in pixels that one output unit sees, padding included; `all` after a
            layer that mixes the whole image, `unknown` where no rule covers what the layer does.
        jump: pixels between the fields of neighbouring units, (vertical, horizontal); None without a size.
        depth: 1 for the network's own layers, 2 for theirs, and so on.
    """

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    receptive_field: tuple[int, int] | Literal["all", "unknown"]
    jump: tuple[int, int] | None
    depth: int = 1

    def __str__(self) -> str:
        """As the book's `layer_summary` prints it."""
        return f"{self.layer} output shape:\t {torch.Size(self.output_shape)}"


@dataclass(frozen=True)
class Summary:
    """The rows in the order of the calls; the totals are the network's, each parameter counted once."""

    rows: tuple[Row, ...]
    input_shape: tuple[int, ...]
    parameters: int
    flops: int

    def __str__(self) -> str:
        """The table as the book prints it."""
        return "\n".join(map(str, self.rows))


def summarise(model: nn.Module, input_shape: Sequence[int], depth: int = 1) -> Summary:
    """Run `model` once in evaluation mode on an input (N, C, H, W), and describe each layer and its output.

    The input is on the model's device; on `meta` nothing is computed, and shapes and counts are the same.
    Layers down to `depth` have rows; a model without layers is its own row.

    Raises:
        UsageError: the network cannot take this input; the message names the layer and the shape it was given.
    """
    shape = tuple(input_shape)
    if len(shape) != 4 or min(shape) < 1:
        raise UsageError(f"an input is four positive numbers N, C, H, W, not {list(shape)}")
    like = next(model.parameters(), torch.empty(0))
    image = torch.zeros(shape, dtype=like.dtype, device=like.device)
    recorder = _Recorder(depth if any(model.children()) else 0)
    recorder.fields.start(image)
    training = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            recorder.watch(name, module, stack)
        stack.callback(lambda: [module.train(mode) for module, mode in training.items()])
        stack.enter_context(recorder.counter)
        stack.enter_context(recorder.fields)
        try:
            model.eval()(image)
        except REFUSALS as error:
            raise UsageError(recorder.refusal(error)) from error
    return Summary(
        rows=tuple(row for _, row in sorted(recorder.rows.items())),
        input_shape=shape,
        parameters=_parameters(model),
        flops=recorder.counter.get_total_flops(),
    )


@dataclass(frozen=True)
class _Visit:
    """A layer that is running: what was known when it was called."""

    name: str
    module: nn.Module
    number: int
    input_shapes: tuple[tuple[int, ...], ...]
    flops_before: int


class _Recorder:
    """Makes a row of every layer that runs, down to a depth; hooks on the modules feed it."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.counter = FlopCounterMode(display=False)
        self.fields = ReceptiveFields()
        self.rows: dict[int, Row] = {}  # by the number of the visit: parents finish after their children
        self._running: list[_Visit] = []
        self._visits = 0
        self._counted: set[nn.Module] = set()

    def watch(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        """Hook into a module until the stack unwinds."""

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            shapes = tuple(tuple(tensor.shape) for tensor in tensors(args))
            self._running.append(_Visit(name, module, self._visits, shapes, self.counter.get_total_flops()))
            self._visits += 1

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._record(self._running.pop(), next(tensors(output), None))

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    def refusal(self, error: Exception) -> str:
        """Which layer did not take what it was given, and why."""
        visit = self._running[-1]
        where = f" at {visit.name!r}" if visit.name else ""
        given = " and ".join(str(list(shape)) for shape in visit.input_shapes)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"layer {type(visit.module).__name__}{where} cannot take an input of {given}: {reason}"

    def _record(self, visit: _Visit, output: Tensor | None) -> None:
        level = visit.name.count(".") + 1 if visit.name else 0
        if level > self.depth or (level == 0 and self.depth > 0):
            return
        seen = self.fields.of(output) if output is not None else None
        first = visit.module not in self._counted
        self._counted.add(visit.module)
        self.rows[visit.number] = Row(
            name=visit.name,
            layer=type(visit.module).__name__,
            output_shape=() if output is None else tuple(output.shape),
            parameters=_parameters(visit.module) if first else 0,
            flops=self.counter.get_total_flops() - visit.flops_before,
            receptive_field=_extent(seen),
            jump=seen.jump if seen is not None and seen.reach == Reach.SIZE else None,
            depth=max(level, 1),
        )


def _extent(seen: Field | None) -> tuple[int, int] | Literal["all", "unknown"]:
    if seen is None or seen.reach == Reach.UNKNOWN:
        return "unknown"
    return "all" if seen.reach == Reach.EVERYTHING else seen.size


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # a shared one comes once
