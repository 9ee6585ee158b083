"""What a fused op ought to answer, and how far rounding may take it: a linear op's errors through an activation.

Errors come from three places, and each has a tensor of its own in `Exact`:

- the sums that follow the activation, or in a gradient its slope: bounded as those of the linear op, with what is
  summed (`magnitudes`);
- what comes into the activation is rounded already, and so is the activation itself: its value errs by
  |f'|·error + 2u·|f|, its slope by |f''|·error and by what a rounded output makes of it (`carried`);
- at a kink the slope jumps: which side a sum lies on that is smaller than its error, rounding decides. What those
  few outputs hand back may be there or not (`doubtful`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convbench.registry.activations import activation_of
from convbench.registry.exact import OUTPUT, Directed, Exact, answers_with, partial_sums_of, terms_of
from convbench.registry.op_record import Op
from convbench.registry.records import Accuracy
from convbench.registry.tolerances import bound, deviation, unit_roundoff

ROUNDED = 2.0  # units of the last place by which an activation by itself may err, root mean square


@dataclass(frozen=True)
class Sizes:
    """How the sizes of terms are added up: as squares for random data, or as they are for any."""

    of: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    squares: bool

    def linear(self, op: Op) -> Callable[..., Tensor]:
        """The op on sizes."""
        return op.of_squares if self.squares else op.reference


RANDOM = Sizes(torch.square, torch.sqrt, squares=True)
ANY = Sizes(torch.abs, torch.abs, squares=False)


class Frozen(Function):
    """A function of which nothing is known but its value and derivatives at one point, `input`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, value: Tensor, *derivatives: Tensor) -> Tensor:
        ctx.save_for_backward(input, *derivatives)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, *derivatives = ctx.saved_tensors
        slope = Frozen.apply(input, *derivatives) if derivatives else torch.zeros_like(input)
        return (upstream * slope, *(None for _ in range(1 + len(derivatives))))


def exact_fused(
    op: Op,
    arguments: Mapping[str, Any],
    upstream: Tensor,
    directed: Directed,
    accuracy: Accuracy,
    sizes: Sizes = RANDOM,
) -> Exact:
    """The reference of a fused op on `arguments`, with gradients; errors are held against each element's terms.

    Args:
        op: the fused op.
        arguments: of the call, by name.
        upstream: the gradient of the output.
        directed: a direction for each gradient, where those of second order are wanted.
        accuracy: what the backend declares; an algorithm that is `normwise` has its `growth` only.
        sizes: `RANDOM` for data of mean zero, `ANY` for what a network really computes.
    """
    assert op.base is not None
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    options = {name: value for name, value in arguments.items() if name not in tensors}
    truth = answers_with(partial(op.reference, **options), arguments, tensors, upstream, directed)
    activation = activation_of(options.pop("activation"))
    wide = {name: arguments[name].detach().double() for name in tensors}
    sized = {name: sizes.of(value) for name, value in wide.items()} if op.base.multilinear else wide
    linear = partial(sizes.linear(op.base) if op.base.multilinear else op.base.reference, **options)
    terms = terms_of(op, arguments, truth[OUTPUT])

    dtype = arguments["input"].dtype
    with torch.no_grad():
        before = wide["input"] if op.activated == "input" else op.base.reference(**wide, **options)
        error = edge = torch.zeros_like(before)
        if op.activated == "output" and op.base.multilinear:
            magnitude = _magnitude(sizes, linear(**sized), terms[OUTPUT])
            added = wide["bias"].abs()[:, None, None] if "bias" in wide else 0.0
            call = before, magnitude, terms[OUTPUT], dtype, accuracy, 0, added
            error, edge = (each(*call) for each in (deviation, bound))
            error = error.masked_fill(~before.isfinite(), 0.0)  # an infinity is exact
        value = activation.function(before)
        first, second, third = activation.derivatives(before)
        of_slope, of_curvature = activation.sensitivity(before)
        own = ROUNDED * unit_roundoff(dtype if torch.finfo(dtype).bits >= 32 else torch.float32)
        kept = max(own, unit_roundoff(dtype))  # what is stored in between
        carried = (
            first.abs() * error + (kept if op.activated == "input" else own) * value.abs(),
            second.abs() * error + kept * (first.abs() + of_slope),
            third.abs() * error + kept * (second.abs() + of_curvature),
        )

    def answers(*frozen: Tensor) -> dict[str, Tensor]:
        """Sizes of all answers, with an activation of that value and those derivatives."""
        at_point = [sizes.of(each) for each in frozen]

        def reference(**given: Tensor) -> Tensor:
            if op.activated == "input":
                return linear(**{**given, "input": Frozen.apply(given["input"], *at_point)})
            output: Tensor = Frozen.apply(linear(**given), *at_point)
            return output

        ways = {name: sizes.of(each) for name, each in directed.items()}
        return answers_with(reference, sized, tensors, sizes.of(upstream.double()), ways)

    none = torch.zeros_like(before)
    summed = answers(value if op.activated == "input" else none, first, second)
    doubtful: dict[str, Tensor] = {}
    if activation.kinked and bool((before.abs() < edge).any()):
        at_kink = (before.abs() < edge).double()
        in_full = exact_sizes(op, linear_of(op, options), wide, tensors, upstream, directed, at_kink)
        doubtful = {name: each for name, each in in_full.items() if name != OUTPUT}
    return Exact(
        truth,
        {name: _magnitude(sizes, each, terms[name]) for name, each in summed.items()},
        terms,
        partial_sums_of(arguments),
        None if op.activated == "output" else wide.get("bias"),
        {name: sizes.back(each) for name, each in answers(*carried).items()},
        doubtful,
    )


def linear_of(op: Op, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """A fused op without its activation."""
    assert op.base is not None
    return partial(op.base.reference, **options)


def exact_sizes(
    op: Op,
    linear: Callable[..., Tensor],
    wide: Mapping[str, Tensor],
    tensors: list[str],
    upstream: Tensor,
    directed: Directed,
    at_kink: Tensor,
) -> dict[str, Tensor]:
    """The most that outputs at a kink can hand back, or not."""
    none = torch.zeros_like(at_kink)

    def reference(**given: Tensor) -> Tensor:
        output: Tensor = Frozen.apply(linear(**given), none, at_kink, none)
        return output

    ways = {name: each.abs() for name, each in directed.items()}
    absolute = {name: value.abs() for name, value in wide.items()}
    return answers_with(reference, absolute, tensors, upstream.double().abs(), ways)


def _magnitude(sizes: Sizes, size: Tensor, terms: int) -> Tensor:
    """√K·A; for any data the sum of the terms' sizes stands for the root of their squares."""
    return (terms * size).sqrt() if sizes.squares else terms**0.5 * size.abs()
