"""The reference of ops that are a convolution, an activation and a pooling, or two of them.

The errors of a fused op have three sources, each with a tensor of its own in `Reference`:

- the sums after the activation, or in a gradient its slope: bounded as those of the linear op, with the summed
  terms (`magnitudes`);
- what enters the activation is rounded already, and so is the activation itself: its value errs by
  |f'|·error + 2u·|f|, its slope by |f''|·error and by what a rounded output makes of it (`carried`);
- at a kink the slope jumps: for a sum smaller than its own error, rounding decides the side. The gradients of
  those few outputs may be there or not (`doubtful`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from convbench.registry.conformance.reference.answers import (
    OUTPUT,
    Directed,
    Reference,
    Sizes,
    answers_in_float64,
    magnitude_of,
    partial_sums_of,
    terms_of,
)
from convbench.registry.conformance.tolerances import rms_tolerance, tolerance, unit_roundoff
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.fused import pooling_of
from convbench.registry.ops.op import Op
from convbench.registry.ops.window import pair
from convbench.registry.records import Accuracy

ACTIVATION_ERROR = 2.0  # units of the last place by which an activation by itself may err, root mean square


class _FixedFunction(Function):
    """A function of which nothing is known but its value and derivatives at one point, `input`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, value: Tensor, *derivatives: Tensor) -> Tensor:
        ctx.save_for_backward(input, *derivatives)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, *derivatives = ctx.saved_tensors
        slope = _FixedFunction.apply(input, *derivatives) if derivatives else torch.zeros_like(input)
        return (grad_output * slope, *(None for _ in range(1 + len(derivatives))))


def fused_reference(
    op: Op,
    arguments: Mapping[str, Any],
    grad_output: Tensor,
    accuracy: Accuracy,
    factor_error: float,
    sizes: Sizes,
    directed: Directed,
) -> Reference:
    """As `reference_answers`; errors are held against each element's terms. Of `accuracy`, its `growth` counts."""
    assert op.base is not None
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    options = {name: value for name, value in arguments.items() if name not in tensors}
    truth = answers_in_float64(partial(op.reference, **options), arguments, tensors, grad_output, directed)
    pooling = None if op.pooled is None else Pooling(op.pooled, pooling_of(options), sizes)
    activation = activation_of(options.pop("activation"))
    wide = {name: arguments[name].detach().double() for name in tensors}
    sized = {name: sizes.of(value) for name, value in wide.items()} if op.base.multilinear else wide
    linear = partial(sizes.linear(op.base) if op.base.multilinear else op.base.reference, **options)

    dtype = arguments["input"].dtype
    with torch.no_grad():
        before = wide["input"] if op.activated == "input" else op.base.reference(**wide, **options)
        terms = terms_of(op, arguments, truth[OUTPUT] if pooling is None else before)
        error = edge = torch.zeros_like(before)
        if op.activated == "output" and op.base.multilinear:
            magnitude = magnitude_of(sizes, linear(**sized), terms[OUTPUT])
            added = wide["bias"].abs()[:, None, None] if "bias" in wide else 0.0
            call = before, magnitude, terms[OUTPUT], dtype, accuracy, 0, added, factor_error
            error, edge = (each(*call) for each in (rms_tolerance, tolerance))
            error = error.masked_fill(~before.isfinite(), 0.0)  # an infinity is exact
        value = activation.function(before)
        first, second, third = activation.derivatives(before)
        of_slope, of_curvature = activation.sensitivity(before)
        own = ACTIVATION_ERROR * unit_roundoff(dtype if torch.finfo(dtype).bits >= 32 else torch.float32)
        kept = max(own, unit_roundoff(dtype))  # what is stored in between
        last = op.activated == "output" and pooling is None
        carried = (
            first.abs() * error + (own if last else kept) * value.abs(),
            second.abs() * error + kept * (first.abs() + of_slope),
            third.abs() * error + kept * (second.abs() + of_curvature),
        )

    def answers(*frozen: Tensor) -> dict[str, Tensor]:
        """Sizes of all answers, with an activation of that value and those derivatives."""
        at_point = [sizes.of(each) for each in frozen]

        def reference(**given: Tensor) -> Tensor:
            if op.activated == "input":
                return linear(**{**given, "input": _FixedFunction.apply(given["input"], *at_point)})
            output: Tensor = _FixedFunction.apply(linear(**given), *at_point)
            return output if pooling is None else pooling.of_sizes(output, value)

        ways = {name: sizes.of(each) for name, each in directed.items()}
        return answers_in_float64(reference, sized, tensors, sizes.of(grad_output.double()), ways)

    none = torch.zeros_like(before)
    sums_last = op.activated == "input" or (pooling is not None and pooling.op.multilinear)
    summed = answers(value if sums_last else none, first, second)
    if pooling is not None:
        terms[OUTPUT] = pooling.op.reduction(pooling.window)
    doubtful: dict[str, Tensor] = {}
    without_activation = partial(op.base.reference, **options)

    def doubt(slope: Tensor, pooled: Callable[[Tensor], Tensor]) -> None:
        """Add what outputs of an activation with that slope may hand back, or not: rounding decides."""
        in_full = _magnitudes_in_doubt(
            without_activation, wide, tensors, grad_output, directed, slope, pooled
        )
        for name, each in in_full.items():
            if name != OUTPUT:
                doubtful[name] = doubtful[name] + each if name in doubtful else each

    if activation.kinked and bool((before.abs() < edge).any()):
        at_kink = (before.abs() < edge).double()
        doubt(at_kink, _unchanged if pooling is None else partial(pooling.of_any, chosen=value))
    carried_on = {name: sizes.back(each) for name, each in answers(*carried).items()}
    if pooling is not None and not pooling.op.multilinear:
        carried_on[OUTPUT] = pooling.largest(carried[0])
        tied = pooling.tied(value, first.abs() * edge + 4 * kept * value.abs())
        if bool(tied.any()):
            doubt(tied * first.abs(), pooling.total)
    return Reference(
        truth,
        {name: magnitude_of(sizes, each, terms[name]) for name, each in summed.items()},
        terms,
        partial_sums_of(arguments),
        None if op.activated == "output" else wide.get("bias"),
        factor_error,
        carried_on,
        doubtful,
    )


def _unchanged(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Pooling:
    """The pooling that a fused op ends with, of sizes of terms; the place of each maximum is fixed."""

    op: Op
    window: Mapping[str, Any]
    sizes: Sizes

    def of_sizes(self, output: Tensor, values: Tensor) -> Tensor:
        """The pooling of sizes, in the way they are added up, where a maximum is chosen among `values`."""
        if self.op.multilinear:
            return self.sizes.linear(self.op)(output, **self.window)
        return self._chosen(output, values)

    def of_any(self, output: Tensor, chosen: Tensor) -> Tensor:
        """The pooling itself, where a maximum is chosen among the values `chosen`."""
        return (
            self.op.reference(output, **self.window) if self.op.multilinear else self._chosen(output, chosen)
        )

    def largest(self, errors: Tensor) -> Tensor:
        """By how much the largest value of each window can be off."""
        return self.op.reference(errors, **self.window)

    def total(self, output: Tensor) -> Tensor:
        """The sum of each window."""
        return F.avg_pool2d(output, **self.window, divisor_override=1)

    def tied(self, values: Tensor, errors: Tensor) -> Tensor:
        """1 for each value that may be the largest of a window of several such, by errors of that size; else 0."""
        finite = values.nan_to_num(nan=-torch.inf)
        surely = self.op.reference(finite - errors, **self.window)
        height, width = pair(self.window["kernel_size"], "kernel_size")
        step = self.window["stride"]
        windows = partial(
            F.unfold, kernel_size=(height, width), stride=(height, width) if step is None else step
        )
        planes, errors_ = finite.flatten(0, 1)[:, None], (finite + errors).flatten(0, 1)[:, None]
        bound = surely.flatten(0, 1).flatten(1)[:, None]
        able = windows(errors_) >= bound
        able = (able & (able.sum(dim=1, keepdim=True) > 1)).double()
        counts = F.fold(
            able, planes.shape[2:], (height, width), stride=(height, width) if step is None else step
        )
        return counts.clamp(max=1).reshape(values.shape)

    def _chosen(self, output: Tensor, values: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(values, **self.window, return_indices=True)
        return output.flatten(2).gather(2, places.flatten(2)).reshape(pooled.shape)


def _magnitudes_in_doubt(
    linear: Callable[..., Tensor],
    wide: Mapping[str, Tensor],
    tensors: list[str],
    grad_output: Tensor,
    directed: Directed,
    slope: Tensor,
    pooled: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The most that outputs with an activation of that slope can hand back, or not."""
    none = torch.zeros_like(slope)

    def reference(**given: Tensor) -> Tensor:
        return pooled(_FixedFunction.apply(linear(**given), none, slope, none))

    ways = {name: each.abs() for name, each in directed.items()}
    absolute = {name: value.abs() for name, value in wide.items()}
    return answers_in_float64(reference, absolute, tensors, grad_output.double().abs(), ways)
