"""Reference answers: output and gradients of a case in float64, and the magnitudes that bound rounding errors.

The errors of a fused op have three sources, each with a tensor of its own in `Reference`:

- the sums after the activation, or in a gradient its slope: bounded as those of the linear op, with the summed
  terms (`magnitudes`);
- what enters the activation is rounded already, and so is the activation itself: its value errs by
  |f'|·error + 2u·|f|, its slope by |f''|·error and by what a rounded output makes of it (`carried`);
- at a kink the slope jumps: for a sum smaller than its own error, rounding decides the side. The gradients of
  those few outputs may be there or not (`doubtful`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from convbench.registry.conformance.cases import Case
from convbench.registry.conformance.tolerances import (
    confidence,
    largest,
    rms_tolerance,
    root_mean_square,
    tolerance,
    unit_roundoff,
)
from convbench.registry.ops.activations import activation_of
from convbench.registry.ops.fused import pooling_of
from convbench.registry.ops.op import Op
from convbench.registry.ops.window import pair
from convbench.registry.records import Accuracy

OUTPUT = "output"


def gradient_of(name: str) -> str:
    """What the gradient of a tensor is called in outcomes."""
    return f"gradient of {name}"


def second_gradient_of(name: str) -> str:
    """What the gradient of the gradients is called in outcomes; `name` may be `grad_output` as well."""
    return f"second-order gradient of {name}"


@dataclass(frozen=True)
class Reference:
    """The float64 answers of one case by name, with √K·A, K and the number of partial sums of each.

    `tolerances` explains these. `factor_error` is the relative error allowed in the factors of products. Fused ops
    have two more: `carried`, root mean squares of errors that enter their sums, and `doubtful`, what rounding may
    add to them or leave out.
    """

    answers: Mapping[str, Tensor]
    magnitudes: Mapping[str, Tensor]
    terms: Mapping[str, int]
    partial_sums: Mapping[str, int]
    bias: Tensor | None
    factor_error: float = 0.0
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    doubtful: Mapping[str, Tensor] = field(default_factory=dict)

    def tolerance(self, name: str, dtype: torch.dtype, accuracy: Accuracy) -> Tensor:
        """The largest admissible error of each element."""
        own = tolerance(*self._of(name), dtype, accuracy, *self._further(name))
        if name in self.carried:
            own = own + confidence(own.numel()) * self.carried[name]
        return own + self.doubtful[name] if name in self.doubtful else own

    def rms_tolerance(self, name: str, dtype: torch.dtype, accuracy: Accuracy) -> Tensor:
        """The admissible root mean square of each element's error."""
        own = rms_tolerance(*self._of(name), dtype, accuracy, *self._further(name))
        own = own + self.carried[name] if name in self.carried else own
        return own + self.doubtful[name] if name in self.doubtful else own

    def _of(self, name: str) -> tuple[Tensor, Tensor, int]:
        return self.answers[name], self.magnitudes[name], self.terms[name]

    def _further(self, name: str) -> tuple[int, Tensor | float, float]:
        factor_error = (
            0.0 if name == gradient_of("bias") else self.factor_error
        )  # a sum, and nothing is multiplied
        return self.partial_sums.get(name, 0), self._added(name), factor_error

    def _added(self, name: str) -> Tensor | float:
        """A bias comes on top of a sum that may have been rounded to the dtype of the answer."""
        return 0.0 if self.bias is None or name != OUTPUT else self.bias.abs()[:, None, None]


def reference_answers(
    op: Op,
    case: Case,
    arguments: Mapping[str, Any],
    grad_output: Tensor,
    accuracy: Accuracy,
    factor_error: float = 0.0,
) -> Reference:
    """The reference on `arguments`: its output, and for `grad_output` the gradients of every tensor."""
    if op.base is not None:
        named = {name: arguments[name] for name in op.tensors if isinstance(arguments.get(name), Tensor)}
        directed = directions(named) if case.order == 2 else {}
        return fused_reference_answers(
            op, arguments, grad_output, directed, accuracy, factor_error=factor_error
        )
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    wide = {name: arguments[name].detach().double() for name in tensors}
    wide_grad_output = grad_output.double()
    normwise = accuracy.model == "normwise"
    # with squares for values, the reference sums the squares of its terms
    size: Callable[[Tensor], Tensor] = root_mean_square if normwise else torch.square

    options = {name: value for name, value in arguments.items() if name not in tensors}
    directed = directions(wide) if case.order == 2 else {}
    truth = _answers(partial(op.reference, **options), wide, wide_grad_output, directed)
    # a selection, such as a maximum, is that of the values themselves
    sizes = _each(size, wide) if op.multilinear else wide
    reference = partial(op.reference if normwise else op.of_squares, **options)
    magnitudes = _answers(reference, sizes, size(wide_grad_output), _each(size, directed))
    terms = terms_of(op, arguments, truth[OUTPUT])
    if normwise:
        pixels, directed = _each(_pixel, sizes), _each(_pixel, _each(size, directed))
        least = _answers(
            _one_pixel(op, options, _taps(arguments)), pixels, _pixel(size(wide_grad_output)), directed
        )
        magnitudes = {name: torch.maximum(largest(each), least[name]) for name, each in magnitudes.items()}
    else:
        magnitudes = {name: (terms[name] * each).sqrt() for name, each in magnitudes.items()}
    if not op.multilinear:
        magnitudes[OUTPUT] = torch.zeros_like(magnitudes[OUTPUT])
    return Reference(
        truth, magnitudes, terms, partial_sums_of(arguments), wide.get("bias"), op.factor_error(factor_error)
    )


Directed = Mapping[str, Tensor]


def _answers(
    reference: Callable[..., Tensor], values: Mapping[str, Tensor], grad_output: Tensor, directed: Directed
) -> dict[str, Tensor]:
    tensors = {name: value.detach().requires_grad_() for name, value in values.items()}
    grad_output = grad_output.detach().requires_grad_(bool(directed))
    with torch.enable_grad():  # an evaluation is looked at too
        return answers_of(reference(**tensors), tensors, grad_output, directed)


def answers_in_float64(
    reference: Callable[..., Tensor],
    arguments: Mapping[str, Any],
    tensors: Sequence[str],
    grad_output: Tensor,
    directed: Directed,
) -> dict[str, Tensor]:
    """The answers of a reference to some of the arguments, in float64."""
    wide = {name: arguments[name].detach().double() for name in tensors}
    ways = {name: each.double() for name, each in directed.items()}
    return _answers(reference, wide, grad_output.double(), ways)


def _each(of: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: of(tensor) for name, tensor in tensors.items()}


def _one_pixel(op: Op, options: Mapping[str, Any], taps: int) -> Callable[..., Tensor]:
    """The op on images of one pixel, times √taps: a normwise algorithm errs so where windows see padding alone."""
    kept = {name: value for name, value in options.items() if name == "groups"}
    if "kernel_size" in options:
        kept["kernel_size"] = 1
    return lambda **tensors: op.reference(**tensors, **kept) * math.sqrt(taps)


def _pixel(tensor: Tensor) -> Tensor:
    """One pixel of every plane (H, W) of a 4-d tensor that fills them; other tensors as they are."""
    return tensor[..., :1, :1] if tensor.dim() == 4 else tensor


def answers_of(
    output: Tensor, tensors: Mapping[str, Tensor], grad_output: Tensor, directed: Directed
) -> dict[str, Tensor]:
    """The output, its gradients, and of second order where `directed` gives a direction for each of them.

    The second order is the gradient of the sum over all gradients of gradient · direction.
    """
    gradients = torch.autograd.grad(
        output, list(tensors.values()), grad_output, create_graph=bool(directed), allow_unused=True
    )
    named = {
        name: gradient for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None
    }
    found = {OUTPUT: output.detach()} | {gradient_of(name): each.detach() for name, each in named.items()}
    if directed:
        again = {**tensors, "grad_output": grad_output}
        linked = {name: gradient for name, gradient in named.items() if gradient.requires_grad}
        seconds = torch.autograd.grad(
            list(linked.values()),
            list(again.values()),
            [directed[name] for name in linked],
            allow_unused=True,
            materialize_grads=True,
        )
        found |= {second_gradient_of(name): each for name, each in zip(again, seconds, strict=True)}
    return found


def directions(tensors: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """A random direction for each tensor's gradient, of its dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        .to(tensor.device, torch.float32)
        .to(tensor.dtype)
        for name, tensor in tensors.items()
    }


def terms_of(op: Op, arguments: Mapping[str, Any], output: Tensor) -> dict[str, int]:
    """How many terms are summed into one element of the output and of each gradient."""
    reduction = op.reduction(arguments)
    positions = max(1, output.numel() // max(1, output.shape[1]))  # N·H'·W': a weight sees every position
    of_input = reduction
    if "weight" in arguments:
        weight = arguments["weight"]
        of_input = max(1, weight.numel() // max(1, weight.shape[1] * arguments.get("groups", 1)))
    terms = {"input": of_input, "weight": positions, "bias": positions}
    first = {gradient_of(name): number for name, number in terms.items()}
    second = {second_gradient_of(name): number for name, number in terms.items()}
    if op.base is not None:  # a sum that comes out of the activation goes into another one
        second = {name: number + 2 * reduction + 1 for name, number in second.items()}
    return {OUTPUT: reduction, **first, **second, second_gradient_of("grad_output"): 2 * reduction + 1}


def partial_sums_of(arguments: Mapping[str, Any]) -> dict[str, int]:
    """How many partial sums each gradient may be the sum of: one for each tap of the window, or each image."""
    images = len(arguments["input"])
    of = {"input": _taps(arguments), "weight": images, "bias": images}
    return {gradient_of(name): number for name, number in of.items()}


def _taps(arguments: Mapping[str, Any]) -> int:
    kernel = arguments["weight"].shape[2:] if "weight" in arguments else arguments["kernel_size"]
    height, width = pair(kernel, "kernel_size")
    return height * width


ACTIVATION_ERROR = 2.0  # units of the last place by which an activation by itself may err, root mean square


@dataclass(frozen=True)
class Sizes:
    """How the sizes of terms are added up: as squares for random data, or as they are for any."""

    of: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    squares: bool

    def linear(self, op: Op) -> Callable[..., Tensor]:
        """The op on sizes."""
        return op.of_squares if self.squares else op.reference


RANDOM_DATA = Sizes(torch.square, torch.sqrt, squares=True)
ANY_DATA = Sizes(torch.abs, torch.abs, squares=False)


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


def fused_reference_answers(
    op: Op,
    arguments: Mapping[str, Any],
    grad_output: Tensor,
    directed: Directed,
    accuracy: Accuracy,
    sizes: Sizes = RANDOM_DATA,
    factor_error: float = 0.0,
) -> Reference:
    """The reference of a fused op on `arguments`, with gradients; errors are held against each element's terms.

    Args:
        op: the fused op.
        arguments: of the call, by name.
        grad_output: the gradient of the output.
        directed: a direction for each gradient, where those of second order are wanted.
        accuracy: what the backend declares; an algorithm that is `normwise` has its `growth` only.
        sizes: `RANDOM_DATA` for data of mean zero, `ANY_DATA` for what a network really computes.
        factor_error: the relative error allowed in the factors of products.
    """
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
            call = before, magnitude, terms[OUTPUT], dtype, accuracy, 0, added, op.factor_error(factor_error)
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
        op.factor_error(factor_error),
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


def magnitude_of(sizes: Sizes, size: Tensor, terms: int) -> Tensor:
    """√K·A; for any data the sum of the terms' sizes stands for the root of their squares."""
    return (terms * size).sqrt() if sizes.squares else terms**0.5 * size.abs()
