"""Every registered backend on the two convolutions of LeNet, and on a whole step of it.

`make bench` prints a group for each, and `convbench compare` sets the JSON of two such runs against each other.
"""

from __future__ import annotations

from collections.abc import Callable


def test_first_convolution(time_op: Callable[..., object]) -> None:
    time_op("conv2d", {"input": (8, 1, 28, 28), "weight": (6, 1, 5, 5), "bias": (6,)}, padding=2)


def test_second_convolution(time_op: Callable[..., object]) -> None:
    time_op("conv2d", {"input": (8, 6, 14, 14), "weight": (16, 6, 5, 5), "bias": (16,)})


def test_lenet(time_step: Callable[..., None]) -> None:
    time_step("lenet", batch_size=8)
