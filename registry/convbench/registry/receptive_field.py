"""The arithmetic of receptive fields: how much of the image one unit can see.

A window (convolution, pooling) lets the field grow by (kernel_size - 1) * dilation * jump, and multiplies the
jump, the distance in pixels between neighbouring units, by the stride. Sizes are the theoretical ones: padding
counts, and a field may be larger than the image. Source: Araujo, Norris and Sim, "Computing receptive fields of
convolutional neural networks" (Distill, 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor


class Reach(IntEnum):
    """What is known about a field; of several that meet, the last one prevails."""

    SIZE = 0
    UNKNOWN = 1
    EVERYTHING = 2


@dataclass(frozen=True, eq=False)
class Field:
    """What every element of a tensor sees.

    Attributes:
        size: (height, width) in pixels.
        jump: pixels between the fields of neighbouring units, (vertical, horizontal).
        reach: whether these two mean anything.
        positions: int32, of the tensor's shape: which place of the feature map each element belongs to, -1 for
            none. It tells which dimensions hold different places. None where that no longer matters.
    """

    size: tuple[int, int]
    jump: tuple[int, int]
    reach: Reach
    positions: Tensor | None

    def unknown(self) -> Field:
        """After something no rule covers."""
        return replace(self, reach=max(self.reach, Reach.UNKNOWN), positions=None)

    def everything(self) -> Field:
        """After a mixture of the whole feature map."""
        return replace(self, reach=Reach.EVERYTHING, positions=None)

    def at(self, positions: Tensor) -> Field:
        """The same field for elements at other positions."""
        return replace(self, positions=positions) if self.reach == Reach.SIZE else self

    def slid(
        self,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        positions: Tensor,
    ) -> Field:
        """After a sliding window."""
        grown = [(kernel_size[axis] - 1) * dilation[axis] * self.jump[axis] for axis in (0, 1)]
        size = (self.size[0] + grown[0], self.size[1] + grown[1])
        jump = (self.jump[0] * stride[0], self.jump[1] * stride[1])
        return Field(size, jump, self.reach, None).at(positions)

    def mixed(self, dims: Sequence[int]) -> Field:
        """After every element came to depend on all elements along these dimensions.

        Nothing changes where they hold one place, such as the channels of a pixel. Over all places the field
        is the whole image; over some, such as one window of many, it is unknown.
        """
        places = self.positions
        if places is None:
            return self
        if not any(bool((places != places.narrow(dim, 0, 1)).any()) for dim in dims):
            return self
        own = {dim % places.dim() for dim in dims}
        together = places[tuple(slice(None) if dim in own else 0 for dim in range(places.dim()))]
        everywhere = together.unique().numel() == places.unique().numel()
        return self.everything() if everywhere else self.unknown()


def pixels(image: Tensor) -> Field:
    """The field of the pixels of (N, C, H, W) themselves."""
    return Field((1, 1), (1, 1), Reach.SIZE, places(image))


def places(features: Tensor) -> Tensor:
    """Number the places of (N, C, H, W), the same in every image and channel; takes the memory of one."""
    height, width = features.shape[2:]
    numbers = torch.arange(height * width, dtype=torch.int32, device="cpu")
    return numbers.view(1, 1, height, width).expand(features.shape)


def union(fields: Sequence[Field]) -> Field:
    """The smallest field with all of these in it, taking them as concentric; it has no positions."""
    return Field(
        (max(field.size[0] for field in fields), max(field.size[1] for field in fields)),
        (max(field.jump[0] for field in fields), max(field.jump[1] for field in fields)),
        max(field.reach for field in fields),
        None,
    )
