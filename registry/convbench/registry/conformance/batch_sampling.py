"""Chooses which images of a large batch are compared with the reference: a few, with the first and the last.

The call itself keeps its size. A float64 reference of a hundred large images takes minutes and gigabytes, and
images do not depend on each other: the gradient that is handed back is zero but for these, so that the gradients
of weight and bias are sums over these, and that of the input is zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from convbench.registry.ops.contract import Op

WORK = 2.5e8  # floating-point operations of a call whose every image is compared
ELEMENTS = 2**22  # numbers in its input, and in its output
FEWEST = 4


def sample_images(op: Op, arguments: Mapping[str, Any], seed: int, share: float = 1.0) -> Tensor | None:
    """The images that are compared, in order; None for all of them.

    Args:
        op: that is called.
        arguments: of the call, by name.
        seed: of the choice.
        share: of the work and the numbers that are compared otherwise.
    """
    shapes, output = op.on_meta(arguments)
    images = len(output)
    work = op.flops(output, **shapes)
    elements = max(arguments["input"].numel(), output.numel())
    count = max(FEWEST, int(images * share * min(WORK / max(work, 1), ELEMENTS / max(elements, 1))))
    if count >= images:
        return None
    generator = torch.Generator().manual_seed(seed + 15485863)
    inner = torch.randperm(images - 2, generator=generator)[: count - 2] + 1
    ends = torch.tensor([0, images - 1])
    return torch.cat([ends, inner]).sort().values


def restricted_call(sample: Tensor | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the same call on these images alone."""
    return {**arguments, "input": sampled(sample, arguments["input"])}


def sampled(sample: Tensor | None, images: Tensor) -> Tensor:
    """These images of a batch."""
    return images if sample is None else images[sample]


def unsampled(sample: Tensor, images: Tensor) -> Tensor:
    """The images of a batch that are not among these."""
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[sample] = False
    return images[kept]


def scattered(sample: Tensor | None, images: Tensor, batch: int) -> Tensor:
    """A batch of that size that holds these images at their places, and zeros for all others."""
    if sample is None:
        return images
    whole = images.new_zeros((batch, *images.shape[1:]))
    whole[sample] = images
    return whole
