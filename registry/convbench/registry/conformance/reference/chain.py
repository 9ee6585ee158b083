"""Reference answers of `sequential`: its layers in float64, and the errors that are handed from layer to layer.

What enters a layer errs already (`e`), and what it hands on errs by its own rounding too: the error of a sum is
that of its terms, weighted as they are, and its own. Where rounding decides, at a kink and between equals of a
maximum, a gradient may be handed back or not (`doubt`), which its size bounds. `reference` has both for one
activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.conformance.reference.answers import (
    OUTPUT,
    Directed,
    Reference,
    Sizes,
    answers_in_float64,
    gradient_of,
    magnitude_of,
)
from convbench.registry.conformance.reference.fused import ACTIVATION_ERROR, Pooling
from convbench.registry.conformance.tolerances import confidence, rms_tolerance, unit_roundoff
from convbench.registry.ops.activations import ACTIVATIONS
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.fused import pooling_of
from convbench.registry.ops.op import Op
from convbench.registry.ops.sequential import PARAMETERS, with_parameters
from convbench.registry.records import Accuracy

Product = Callable[..., Tensor]


def chain_reference(
    op: Op,
    arguments: Mapping[str, Any],
    grad_output: Tensor,
    accuracy: Accuracy,
    factor_error: float,
    sizes: Sizes,
    directed: Directed,
) -> Reference:
    """As `reference_answers`; gradients of second order are held against their largest, of smooth layers."""
    layers, input = arguments["layers"], arguments["input"]
    tensors = [name for name in op.tensors if isinstance(arguments.get(name), Tensor)]
    reference = partial(op.reference, layers=layers)
    truth = answers_in_float64(reference, arguments, tensors, grad_output, directed)
    wide = [arguments.get(name) for name in PARAMETERS]
    parameters = [None if each is None else each.detach().double() for each in wide]
    rounding = _Rounding(input.dtype, accuracy, sizes, factor_error)
    x = input.detach().double()
    e = torch.zeros_like(x)
    passed = []
    with torch.no_grad():
        for (name, *options), weight, bias in with_parameters(parameters, layers):
            if name == "flatten":
                x, e = x.flatten(1), e.flatten(1)
                continue
            layer = _Layer.of(name, options, weight, bias, x, e, rounding)
            passed.append(layer)
            x, e = layer.output, layer.error
        magnitudes, terms, errors, doubts = {OUTPUT: torch.zeros_like(x)}, {OUTPUT: 1}, {OUTPUT: e}, {}
        given = _Given(grad_output.double(), torch.zeros_like(x), torch.zeros_like(x))
        for number in reversed(range(len(passed))):
            layer = passed[number]
            names = (f"weight{number}", f"bias{number}", "" if number else "input")
            given = given.in_shape_of(layer.output)
            back = layer.back(given)
            for name, found in zip(names, back.answers, strict=True):
                if name in tensors:
                    key = gradient_of(name)
                    magnitudes[key], terms[key], errors[key], doubts[key] = found
            given = back.given
    for name in truth.keys() - magnitudes.keys():
        terms[name] = max(terms.values())
        largest = truth[name].abs().nan_to_num(0.0, 0.0).max() if truth[name].numel() else 0.0
        magnitudes[name] = terms[name] ** 0.5 * largest * torch.ones_like(truth[name])
    images = {name: len(input) for name in magnitudes if name != OUTPUT}
    return Reference(truth, magnitudes, terms, images, None, factor_error, errors, doubts)


def _finite(errors: Tensor) -> Tensor:
    """What is no number has no error: it must be the same."""
    return errors.nan_to_num(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class _Rounding:
    """How sums are rounded."""

    dtype: torch.dtype
    accuracy: Accuracy
    sizes: Sizes
    factor_error: float

    @property
    def kept(self) -> float:
        """Of what is stored in between, and of an activation."""
        single = self.dtype if torch.finfo(self.dtype).bits >= 32 else torch.float32
        return max(ACTIVATION_ERROR * unit_roundoff(single), unit_roundoff(self.dtype))

    def together(self, *errors: Tensor) -> Tensor:
        """Errors of several sources as one."""
        return self.sizes.back(sum(map(self.sizes.of, errors), torch.zeros(())))

    def of_sums(self, sums: Tensor, size: Tensor, terms: int) -> Tensor:
        """The root mean square error of sums of so many terms, of which `size` has the sums of sizes."""
        magnitude = magnitude_of(self.sizes, size, terms)
        return rms_tolerance(sums, magnitude, terms, self.dtype, self.accuracy, 0, 0.0, self.factor_error)


@dataclass(frozen=True)
class _Given:
    """The gradient of an output, its error, and what rounding may add to it or leave out."""

    value: Tensor
    error: Tensor
    doubt: Tensor

    def in_shape_of(self, output: Tensor) -> _Given:
        return _Given(*(each.reshape(output.shape) for each in (self.value, self.error, self.doubt)))


@dataclass(frozen=True)
class _Back:
    """Of weight, bias and input: √K·A, K, error and doubt of their gradients; and that of the input itself."""

    answers: tuple[tuple[Tensor, int, Tensor, Tensor], ...]
    given: _Given


@dataclass(frozen=True)
class _Layer:
    """A layer on its input `x`, which errs by `e`: sums `z` that err by `of_sums`, activated to `y`."""

    product: Product
    weight: Tensor
    bias: Tensor | None
    activation: str
    pooling: Pooling | None
    x: Tensor
    e: Tensor
    z: Tensor
    of_sums: Tensor
    y: Tensor
    of_y: Tensor
    output: Tensor
    error: Tensor
    rounding: _Rounding

    @classmethod
    def of(
        cls,
        name: str,
        options: list[Any],
        weight: Tensor,
        bias: Tensor | None,
        x: Tensor,
        e: Tensor,
        rounding: _Rounding,
    ) -> _Layer:
        sizes, pooled = rounding.sizes, OPS[name].pooled if name in OPS else None
        product: Product = F.linear
        activation = options[0]
        if pooled is not None:
            call = OPS[name].bind((x, weight, bias, *options), {})
            product = partial(
                F.conv2d, **{each: call[each] for each in ("stride", "padding", "dilation", "groups")}
            )
            activation, window = call["activation"], pooling_of(call)
        z = product(x, weight, bias)
        size = product(sizes.of(x), sizes.of(weight), None if bias is None else sizes.of(bias))
        own = rounding.of_sums(z, size, weight[0].numel() + 1)
        handed_on = sizes.back(product(sizes.of(e), sizes.of(weight), None))
        of_sums = _finite(rounding.together(own, handed_on))
        y, of_y = z, of_sums
        if activation != "none":
            record = ACTIVATIONS[activation]
            y, slope = record.function(z), record.derivatives(z)[0].abs()
            if record.kinked:
                slope = torch.where(z.abs() < confidence(z.numel()) * of_sums, 1.0, slope)
            of_y = _finite(rounding.together(slope * of_sums, rounding.kept * y))
        output, error, pooling = y, of_y, None
        if pooled is not None:
            pooling = Pooling(pooled, window, sizes)
            output = pooled.reference(y, **window)
            if pooled.multilinear:
                mean = sizes.back(pooling.of_sizes(sizes.of(of_y), y))
                error = rounding.together(mean, rounding.kept * pooled.reference(y.abs(), **window))
            else:
                error = pooling.largest(of_y)
        return cls(
            product,
            weight,
            bias,
            activation,
            pooling,
            x,
            e,
            z,
            of_sums,
            y,
            of_y,
            output,
            _finite(error),
            rounding,
        )

    def back(self, given: _Given) -> _Back:
        """The gradients, for that of the output."""
        sizes, rounding, weight = self.rounding.sizes, self.rounding, self.weight
        h = self._before_activation(self._before_pooling(given))
        h = _Given(h.value, _finite(h.error), _finite(h.doubt))
        of_h = sizes.of(h.value)
        own = self._pulled(sizes.of(self.x), sizes.of(weight), of_h)
        passed = self._pulled(sizes.of(self.x), sizes.of(weight), sizes.of(h.error))
        from_x = self._pulled(sizes.of(self.e), sizes.of(weight), of_h)
        doubts = self._pulled(self.x.abs(), weight.abs(), h.doubt)
        value = self._pulled(self.x, weight, h.value)[2]
        positions = max(1, h.value.numel() // max(1, h.value.shape[1]))
        terms = positions, positions, max(1, weight.numel() // max(1, self.x.shape[1]))
        errors = (sizes.back(passed[0] + from_x[0]), *map(sizes.back, passed[1:]))
        magnitudes = tuple(magnitude_of(sizes, each, count) for each, count in zip(own, terms, strict=True))
        further = rounding.of_sums(value, own[2], terms[2])
        return _Back(
            tuple(zip(magnitudes, terms, map(_finite, errors), map(_finite, doubts), strict=True)),
            _Given(value, _finite(rounding.together(errors[2], further)), _finite(doubts[2])),
        )

    def _pulled(self, x: Tensor, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of weight, bias and input of the product, for that of its sums."""
        bias = given.new_zeros(given.shape[1])
        leaves = [each.detach().requires_grad_() for each in (weight, bias, x)]
        with torch.enable_grad():
            sums = self.product(leaves[2], leaves[0], leaves[1])
        return torch.autograd.grad(sums, leaves, given)  # type: ignore[return-value]

    def _before_pooling(self, given: _Given) -> _Given:
        if self.pooling is None:
            return given
        pooling, sizes = self.pooling, self.rounding.sizes

        def pulled(pooled: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
            leaf = self.y.detach().requires_grad_()
            with torch.enable_grad():
                output = pooled(leaf)
            return torch.autograd.grad(output, leaf, value)[0]

        of_any, of_sizes = partial(pooling.of_any, chosen=self.y), partial(pooling.of_sizes, values=self.y)
        value = pulled(of_any, given.value)
        handed_on = sizes.back(pulled(of_sizes, sizes.of(given.error)))
        summed = pulled(of_any, given.value.abs())  # a sum of many windows may have cancelled
        error = self.rounding.together(handed_on, self.rounding.kept * summed)
        if pooling.op.multilinear:
            return _Given(value, error, pulled(of_any, given.doubt))
        off = confidence(self.y.numel()) * self.of_y + 4 * self.rounding.kept * self.y.abs()
        tied = pooling.tied(self.y, off)
        doubt = pulled(of_any, given.doubt) + tied * pulled(pooling.total, given.value.abs() + given.doubt)
        return _Given(value, error, doubt)

    def _before_activation(self, given: _Given) -> _Given:
        if self.activation == "none":
            return given
        record, kept = ACTIVATIONS[self.activation], self.rounding.kept
        first, second, _ = record.derivatives(self.z)
        of_slope, _ = record.sensitivity(self.z)
        slope, size = first.abs(), given.value.abs()
        of_first = self.rounding.together(second * self.of_sums, kept * (slope + of_slope))
        error = self.rounding.together(slope * given.error, size * of_first)
        doubt = slope * given.doubt
        if record.kinked:
            near = self.z.abs() < confidence(self.z.numel()) * self.of_sums
            doubt = torch.where(near, given.doubt + size, doubt)
        return _Given(given.value * first, error, doubt)
