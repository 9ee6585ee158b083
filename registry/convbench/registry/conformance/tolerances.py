"""How far an answer may be from the float64 reference; docs/correctness.md derives these bounds, with sources.

With u the unit roundoff of the accumulator, K the number of terms and A the root of the sum of their squares, an
answer must keep two bounds:

- every element: an error of at most λ·√K·u·A with λ² = 36 + 2·ln n, for n elements;
- all elements together: a root mean square of error / (2·√(K/3)·u·A) of at most 1 + 6/√n.

√K·A is the root of K times the reference on squares, element by element; for `normwise` ops, the reference on
planes (H, W) filled with their root mean squares, and the largest value of each plane. Half-precision outputs are
rounded once more, and gradients may be sums of rounded values. In TF32, 2⁻¹⁰·A is added to u·√K·A.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convbench.registry.records import Accuracy

CONFIDENCE = 6.0  # λ
# of the root mean square, for reference sums that are rounded too and data that is not so random
MARGIN = 2.0
ELEMENTWISE = Accuracy()


def tolerance(
    reference: Tensor,
    magnitude: Tensor,
    terms: int,
    dtype: torch.dtype,
    accuracy: Accuracy = ELEMENTWISE,
    partial: int = 0,
    added: Tensor | float = 0.0,
    factor_error: float = 0.0,
) -> Tensor:
    """The largest admissible |answer - reference|, per element.

    Args:
        reference: the exact answer, float64.
        magnitude: √K·A, float64, of the same shape.
        terms: K, how many terms are summed into one element.
        dtype: of the answer.
        accuracy: what the backend declares of the op.
        partial: how many partial sums may be rounded to half precision before they are added.
        added: the magnitude of what is added to a sum that was rounded already, in half precision.
        factor_error: by how much each factor of a product may be off, relatively, before they are multiplied.
    """
    summed, stored = _errors(reference, magnitude, terms, dtype, accuracy, partial, added, factor_error)
    return confidence(reference.numel()) * summed + 2 * stored


def confidence(elements: int) -> float:
    """λ, in standard deviations: all of so many elements together keep it."""
    return math.sqrt(CONFIDENCE**2 + 2 * math.log(max(1, elements)))


def rms_tolerance(*arguments: Any, **further: Any) -> Tensor:
    """What the root mean square of |answer - reference| over many elements may be, of each; as for `tolerance`."""
    summed, stored = _errors(*arguments, **further)
    return MARGIN / math.sqrt(3) * summed + stored


def _errors(
    reference: Tensor,
    magnitude: Tensor,
    terms: int,
    dtype: torch.dtype,
    accuracy: Accuracy = ELEMENTWISE,
    partial: int = 0,
    added: Tensor | float = 0.0,
    factor_error: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The unit of the summation's errors, and the largest error of rounding a sum to `dtype` and storing it."""
    accumulator = dtype if torch.finfo(dtype).bits >= 32 else torch.float32
    roundoff = unit_roundoff(accumulator)
    if accumulator != dtype:  # √K·A of the partial sums is √(P/K) of it
        roundoff += math.sqrt(partial / terms) * unit_roundoff(dtype)
    summed = accuracy.growth * (roundoff + factor_error / math.sqrt(terms)) * magnitude
    stored = terms * torch.finfo(accumulator).tiny * torch.ones_like(reference)  # denormals that are flushed
    if accumulator != dtype:
        stored = stored + unit_roundoff(dtype) * (reference.abs() + added) + torch.finfo(dtype).tiny
    return summed, stored


def root_mean_square(tensor: Tensor) -> Tensor:
    """Fill every plane (H, W) of a 4-d tensor with its root mean square; of other tensors the magnitudes."""
    if tensor.dim() != 4 or not tensor.numel():
        return tensor.abs()
    return tensor.square().mean(dim=(-2, -1), keepdim=True).sqrt().expand_as(tensor)


def largest(tensor: Tensor) -> Tensor:
    """Fill every plane (H, W) of a 4-d tensor with its largest value; leave other tensors as they are."""
    if tensor.dim() != 4 or not tensor.numel():
        return tensor
    return tensor.amax(dim=(-2, -1), keepdim=True).expand_as(tensor)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next larger number."""
    return float(torch.finfo(dtype).eps) / 2


def error_ratio(
    answer: Tensor, reference: Tensor, admissible: Tensor, accuracy: Accuracy = ELEMENTWISE
) -> Tensor:
    """|answer - reference| in units of what is admissible; infinite where only one of them is a finite number.

    Infinities of the same sign are the same, and so are NaNs; a number that is too large for the dtype of the
    answer is an infinity there. A plane whose data are not finite has no finite norm, and nothing is asked of a
    normwise algorithm there.
    """
    dtype, answer = answer.dtype, answer.to(torch.float64)
    ratio = (answer - reference).abs_().div_(admissible)
    if ratio.isfinite().all():  # nearly always, and what follows would change none of them
        return ratio
    wanted = reference.to(dtype).to(torch.float64)
    same = (
        (answer == reference) | (answer.isnan() & reference.isnan()) | (answer.isinf() & (answer == wanted))
    )
    if accuracy.model == "normwise":
        same |= ~admissible.isfinite()
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0)


def rms_error_ratio(answer: Tensor, reference: Tensor, deviations: Tensor) -> float:
    """The root mean square of |answer - reference| / deviation, in units of the largest that chance explains."""
    finite = reference.isfinite() & answer.isfinite() & (deviations > 0) & deviations.isfinite()
    count = int(finite.sum())
    if not count:
        return 0.0
    errors = (answer.to(torch.float64) - reference).div_(deviations).masked_fill_(~finite, 0.0)
    return math.sqrt(float(errors.square_().sum()) / count) / (1 + CONFIDENCE / math.sqrt(count))
