"""What a reference is made of: float64 answers by name, and the sizes of the terms that bound rounding errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.tolerances import confidence, rms_tolerance, tolerance
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


Directed = Mapping[str, Tensor]


def evaluate(
    reference: Callable[..., Tensor],
    values: Mapping[str, Tensor],
    grad_output: Tensor,
    directed: Directed,
    wanted: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The output of a reference and the gradients of its tensors, or of the `wanted` ones alone."""
    tensors = {
        name: value.detach().requires_grad_(wanted is None or name in wanted)
        for name, value in values.items()
    }
    grad_output = grad_output.detach().requires_grad_(bool(directed))
    with torch.enable_grad():  # an evaluation is looked at too
        output = reference(**tensors)
        needed = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        return answers_of(output, needed, grad_output, directed) if needed else {OUTPUT: output.detach()}


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
    return evaluate(reference, wide, grad_output.double(), ways)


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


def directions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A random direction for each tensor's gradient, of its dtype."""
    generator = torch.Generator().manual_seed(0)
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
    of = {"input": taps(arguments), "weight": images, "bias": images}
    return {gradient_of(name): number for name, number in of.items()}


def taps(arguments: Mapping[str, Any]) -> int:
    """How many pixels a window has."""
    kernel = arguments["weight"].shape[2:] if "weight" in arguments else arguments["kernel_size"]
    height, width = pair(kernel, "kernel_size")
    return height * width


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


def magnitude_of(sizes: Sizes, size: Tensor, terms: int) -> Tensor:
    """√K·A; for any data the sum of the terms' sizes stands for the root of their squares."""
    return (terms * size).sqrt() if sizes.squares else terms**0.5 * size.abs()
