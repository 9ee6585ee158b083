"""What a case ought to answer: output and gradients in float64, and the magnitudes that bound rounding errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convbench.registry.cases import Case
from convbench.registry.geometry import pair
from convbench.registry.op_record import Op
from convbench.registry.records import Accuracy
from convbench.registry.tolerances import bound, confidence, deviation, largest, root_mean_square

OUTPUT = "output"


def gradient_of(name: str) -> str:
    """What the gradient of a tensor is called in outcomes."""
    return f"gradient of {name}"


def second_gradient_of(name: str) -> str:
    """What the gradient of the gradients is called in outcomes; `name` may be `upstream` as well."""
    return f"second-order gradient of {name}"


@dataclass(frozen=True)
class Exact:
    """The answers of one case by name, float64, with √K·A, K and partial sums of each (see `tolerances`).

    `carried` are root mean squares of errors that come into its sums, and `doubtful` what may be in them or not;
    a fused op has such (`convbench.registry.fused_exact`).
    """

    answers: Mapping[str, Tensor]
    magnitudes: Mapping[str, Tensor]
    terms: Mapping[str, int]
    partial_sums: Mapping[str, int]
    bias: Tensor | None
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    doubtful: Mapping[str, Tensor] = field(default_factory=dict)

    def bound(self, name: str, dtype: torch.dtype, accuracy: Accuracy) -> Tensor:
        """The largest admissible error of each element."""
        own = bound(*self._of(name), dtype, accuracy, self.partial_sums.get(name, 0), self._added(name))
        if name in self.carried:
            own = own + confidence(own.numel()) * self.carried[name]
        return own + self.doubtful[name] if name in self.doubtful else own

    def deviation(self, name: str, dtype: torch.dtype, accuracy: Accuracy) -> Tensor:
        """The admissible root mean square of each element's error."""
        own = deviation(*self._of(name), dtype, accuracy, self.partial_sums.get(name, 0), self._added(name))
        own = own + self.carried[name] if name in self.carried else own
        return own + self.doubtful[name] if name in self.doubtful else own

    def _of(self, name: str) -> tuple[Tensor, Tensor, int]:
        return self.answers[name], self.magnitudes[name], self.terms[name]

    def _added(self, name: str) -> Tensor | float:
        """A bias comes on top of a sum that may have been rounded to the dtype of the answer."""
        return 0.0 if self.bias is None or name != OUTPUT else self.bias.abs()[:, None, None]


def exact(op: Op, case: Case, arguments: Mapping[str, Any], upstream: Tensor, accuracy: Accuracy) -> Exact:
    """The reference on `arguments`, with gradients of every tensor for the gradient `upstream` of the output."""
    if op.base is not None:
        from convbench.registry.fused_exact import exact_fused

        named = {name: arguments[name] for name in op.tensors if isinstance(arguments.get(name), Tensor)}
        return exact_fused(op, arguments, upstream, directions(named) if case.order == 2 else {}, accuracy)
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    wide = {name: arguments[name].detach().double() for name in tensors}
    grown = upstream.double()
    normwise = accuracy.model == "normwise"
    # with squares for values, the reference sums the squares of its terms
    size: Callable[[Tensor], Tensor] = root_mean_square if normwise else torch.square

    options = {name: value for name, value in arguments.items() if name not in tensors}
    directed = directions(wide) if case.order == 2 else {}
    truth = _answers(partial(op.reference, **options), wide, grown, directed)
    # a selection, such as a maximum, is that of the values themselves
    sizes = _each(size, wide) if op.multilinear else wide
    reference = partial(op.reference if normwise else op.of_squares, **options)
    magnitudes = _answers(reference, sizes, size(grown), _each(size, directed))
    terms = terms_of(op, arguments, truth[OUTPUT])
    if normwise:
        pixels, directed = _each(_pixel, sizes), _each(_pixel, _each(size, directed))
        least = _answers(_one_pixel(op, options, _taps(arguments)), pixels, _pixel(size(grown)), directed)
        magnitudes = {name: torch.maximum(largest(each), least[name]) for name, each in magnitudes.items()}
    else:
        magnitudes = {name: (terms[name] * each).sqrt() for name, each in magnitudes.items()}
    if not op.multilinear:
        magnitudes[OUTPUT] = torch.zeros_like(magnitudes[OUTPUT])
    return Exact(truth, magnitudes, terms, partial_sums_of(arguments), wide.get("bias"))


Directed = Mapping[str, Tensor]


def _answers(
    reference: Callable[..., Tensor], values: Mapping[str, Tensor], upstream: Tensor, directed: Directed
) -> dict[str, Tensor]:
    tensors = {name: value.detach().requires_grad_() for name, value in values.items()}
    upstream = upstream.detach().requires_grad_(bool(directed))
    with torch.enable_grad():  # an evaluation is looked at too
        return answers_of(reference(**tensors), tensors, upstream, directed)


def answers_with(
    reference: Callable[..., Tensor],
    arguments: Mapping[str, Any],
    tensors: Sequence[str],
    upstream: Tensor,
    directed: Directed,
) -> dict[str, Tensor]:
    """The answers of a reference to some of the arguments, in float64."""
    wide = {name: arguments[name].detach().double() for name in tensors}
    ways = {name: each.double() for name, each in directed.items()}
    return _answers(reference, wide, upstream.double(), ways)


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
    output: Tensor, tensors: Mapping[str, Tensor], upstream: Tensor, directed: Directed
) -> dict[str, Tensor]:
    """The output, its gradients, and of second order where `directed` gives a direction for each of them.

    The second order is the gradient of the sum over all gradients of gradient · direction.
    """
    gradients = torch.autograd.grad(
        output, list(tensors.values()), upstream, create_graph=bool(directed), allow_unused=True
    )
    named = {
        name: gradient for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None
    }
    found = {OUTPUT: output.detach()} | {gradient_of(name): each.detach() for name, each in named.items()}
    if directed:
        again = {**tensors, "upstream": upstream}
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
    return {OUTPUT: reduction, **first, **second, second_gradient_of("upstream"): 2 * reduction + 1}


def partial_sums_of(arguments: Mapping[str, Any]) -> dict[str, int]:
    """How many partial sums each gradient may be the sum of: one for each tap of the window, or each image."""
    images = len(arguments["input"])
    of = {"input": _taps(arguments), "weight": images, "bias": images}
    return {gradient_of(name): number for name, number in of.items()}


def _taps(arguments: Mapping[str, Any]) -> int:
    kernel = arguments["weight"].shape[2:] if "weight" in arguments else arguments["kernel_size"]
    height, width = pair(kernel, "kernel_size")
    return height * width
