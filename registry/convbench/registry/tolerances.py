"""How far an answer may be from the float64 reference.

A sum of K products computed in floating point differs from the exact one by at most about K·u·A, where u is
the unit roundoff of the accumulator and A the sum of the products' magnitudes (Higham, "Accuracy and Stability
of Numerical Algorithms", 3.1); rounding errors of random data cancel, and λ·√K·u·A holds with a probability
of 1 − 2·exp(−λ²/2) (Higham and Mary, 2019). λ is 6 here. A is computed: it is the reference on absolute values,
element by element, so the bound scales with the data, and zeros can never pass for small outputs.

Algorithms that transform whole images or tiles, which a backend declares `normwise`
(`convbench.registry.records.Accuracy`), spread errors over a plane (H, W), in proportion to the norms of what they
transform and not to the terms of one element (Higham, 24.1, for the FFT; Barabasz et al., 2020, for Winograd).
For them A is the reference on planes filled with their root mean squares, the largest value of each plane.
Data of mean zero, as verification draws, add up as √K, and λ·g·u·A holds without the √K (Higham and Mary,
"Sharper probabilistic backward error analysis", 2020); g is the declared growth. Without that slack the tail
counts: λ² is 36 + 2·ln n, by which all n elements together keep the bound with the probability above.

Half-precision answers are rounded once, from sums accumulated in float32, as torch's own are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convbench.registry.records import Accuracy

CONFIDENCE = 6.0  # λ
ELEMENTWISE = Accuracy()


def bound(
    reference: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype, accuracy: Accuracy = ELEMENTWISE
) -> Tensor:
    """The largest admissible |answer − reference|, per element.

    Args:
        reference: the exact answer, float64.
        magnitude: the sum of the terms' magnitudes, float64, of the same shape.
        terms: how many terms are summed into one element.
        dtype: of the answer.
        accuracy: what the backend declares of the op.
    """
    accumulator = dtype if torch.finfo(dtype).bits >= 32 else torch.float32
    if accuracy.model == "elementwise":
        factor = CONFIDENCE * math.sqrt(terms)
    else:
        factor = math.sqrt(CONFIDENCE**2 + 2 * math.log(max(1, reference.numel())))
    summed = factor * accuracy.growth * unit_roundoff(accumulator) * magnitude
    stored = 2 * unit_roundoff(dtype) * reference.abs() if accumulator != dtype else 0.0
    underflow = terms * torch.finfo(dtype).tiny  # flushed denormals
    return summed + stored + underflow


def root_mean_square(tensor: Tensor) -> Tensor:
    """Fill every plane (H, W) of a 4-d tensor with its root mean square; leave other tensors as they are."""
    if tensor.dim() != 4 or not tensor.numel():
        return tensor
    return tensor.square().mean(dim=(-2, -1), keepdim=True).sqrt().expand_as(tensor)


def largest(tensor: Tensor) -> Tensor:
    """Fill every plane (H, W) of a 4-d tensor with its largest value; leave other tensors as they are."""
    if tensor.dim() != 4 or not tensor.numel():
        return tensor
    return tensor.amax(dim=(-2, -1), keepdim=True).expand_as(tensor)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next larger number."""
    return float(torch.finfo(dtype).eps) / 2


def excess(answer: Tensor, reference: Tensor, admissible: Tensor) -> Tensor:
    """|answer − reference| in units of what is admissible; infinite where only one of them is finite."""
    answer = answer.to(torch.float64)
    same = (answer == reference) | (answer.isnan() & reference.isnan())
    ratio = ((answer - reference).abs() / admissible).nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.where(same, torch.zeros_like(ratio), ratio)
