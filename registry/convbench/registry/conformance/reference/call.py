"""The reference of a call of any op: its output and gradients, and what bounds their rounding errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.reference.answers import (
    OUTPUT,
    RANDOM_DATA,
    Directed,
    Reference,
    Sizes,
    evaluate,
    magnitude_of,
    partial_sums_of,
    taps,
    terms_of,
)
from convbench.registry.conformance.reference.chain import chain_reference
from convbench.registry.conformance.reference.fused import fused_reference
from convbench.registry.conformance.tolerances import largest, root_mean_square
from convbench.registry.ops.op import Op
from convbench.registry.records import Accuracy


def reference_answers(
    op: Op,
    arguments: Mapping[str, Any],
    grad_output: Tensor,
    accuracy: Accuracy,
    factor_error: float = 0.0,
    sizes: Sizes = RANDOM_DATA,
    directed: Directed = MappingProxyType({}),
    wanted: Sequence[str] | None = None,
) -> Reference:
    """The reference on `arguments`: its output, and for `grad_output` the gradients of its tensors.

    Args:
        op: that is called.
        arguments: of the call, by name.
        grad_output: the gradient of the output.
        accuracy: what the backend declares.
        factor_error: the relative error allowed in the factors of products.
        sizes: `RANDOM_DATA` for data of mean zero, `ANY_DATA` for what a network really computes.
        directed: a direction for each gradient, where those of second order are wanted.
        wanted: the tensors whose gradients are; every one when None. Those of fused ops have all of them.
    """
    if op.base is not None:
        reference = chain_reference if op.chain else fused_reference
        return reference(op, arguments, grad_output, accuracy, op.factor_error(factor_error), sizes, directed)
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    wide = {name: arguments[name].detach().double() for name in tensors}
    options = {name: value for name, value in arguments.items() if name not in tensors}
    normwise = accuracy.model == "normwise"
    # with squares for values, the reference sums the squares of its terms
    size = root_mean_square if normwise else sizes.of

    def answers(
        reference: Callable[..., Tensor],
        values: Mapping[str, Tensor],
        of: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> dict[str, Tensor]:
        ways = {name: of(each.double()) for name, each in directed.items()}
        return evaluate(reference, values, of(grad_output.double()), ways, wanted)

    truth = answers(partial(op.reference, **options), wide)
    # a selection, such as a maximum, is that of the values themselves
    sized = {name: size(each) for name, each in wide.items()} if op.multilinear else wide
    linear = op.reference if normwise else sizes.linear(op)
    magnitudes = answers(partial(linear, **options), sized, size)
    terms = terms_of(op, arguments, truth[OUTPUT])
    if normwise:
        pixels = {name: _pixel(each) for name, each in sized.items()}
        least = answers(_one_pixel(op, options, taps(arguments)), pixels, lambda each: _pixel(size(each)))
        magnitudes = {name: torch.maximum(largest(each), least[name]) for name, each in magnitudes.items()}
    else:
        magnitudes = {name: magnitude_of(sizes, each, terms[name]) for name, each in magnitudes.items()}
    if not op.multilinear:
        magnitudes[OUTPUT] = torch.zeros_like(magnitudes[OUTPUT])
    further = partial_sums_of(arguments), wide.get("bias"), op.factor_error(factor_error)
    return Reference(truth, magnitudes, terms, *further)


def _one_pixel(op: Op, options: Mapping[str, Any], taps: int) -> Callable[..., Tensor]:
    """The op on images of one pixel, times √taps: a normwise algorithm errs so where windows see padding alone."""
    kept = {name: value for name, value in options.items() if name == "groups"}
    if "kernel_size" in options:
        kept["kernel_size"] = 1
    return lambda **tensors: op.reference(**tensors, **kept) * math.sqrt(taps)


def _pixel(tensor: Tensor) -> Tensor:
    """One pixel of every plane (H, W) of a 4-d tensor that fills them; other tensors as they are."""
    return tensor[..., :1, :1] if tensor.dim() == 4 else tensor
