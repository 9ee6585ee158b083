"""`shift`: right, as many multiplications as it says, and torch's choice among equals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from convbench.plugins.backends import shift
from convbench.registry import verify


@pytest.mark.exhaustive  # test_backends.py has the whole contract with fewer generated cases
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_it_does_every_op_and_option() -> None:
    report = verify("shift", dtypes=["float32"])
    assert report.passed, report.failures
    assert report.count("unsupported") == 0


@pytest.mark.parametrize(("groups", "kernel"), [(1, (3, 3)), (2, (1, 5)), (6, (3, 2))])
def test_multiplications_per_output_are_those_of_the_formula(groups: int, kernel: tuple[int, int]) -> None:
    images, kernels = torch.randn(2, 6, 9, 8), torch.randn(12, 6 // groups, *kernel)
    with FlopCounterMode(display=False) as counter:
        output = shift.conv2d(images, kernels, stride=2, groups=groups)
    multiplications = (
        counter.get_total_flops() / 2
    )  # the counter takes a multiplication and an addition for two
    assert multiplications / output.numel() == 6 // groups * math.prod(kernel)


def test_the_first_of_equals_gets_the_gradient_as_in_torch() -> None:
    images = torch.randn(2, 3, 8, 8).relu()  # ties of zeros
    gradients = []
    for max_pool2d in (shift.max_pool2d, F.max_pool2d):
        leaf = images.clone().requires_grad_()
        max_pool2d(leaf, 3, 2, 1).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]


def test_nan_wins_the_maximum_as_in_torch() -> None:
    images = torch.randn(1, 1, 6, 6)
    images[0, 0, 2, 3] = math.nan
    pooled = shift.max_pool2d(images, 2)
    assert torch.equal(pooled.isnan(), F.max_pool2d(images, 2).isnan())
    assert pooled.isnan().sum() == 1
