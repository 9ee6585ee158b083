"""Counting the work of a network: against arithmetic by hand, and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convbench.registry import create_model
from convbench.suites.measure.op_counter import OpCounts, count_ops

FLOAT = 4  # bytes
BATCH = 8


@pytest.fixture(scope="module")
def lenet() -> OpCounts:
    return count_ops(create_model("lenet"), torch.rand(BATCH, 1, 28, 28))


def by_name(counts: OpCounts, name: str, backward: bool = False) -> list[tuple[int, int]]:
    passes = counts.backward if backward else counts.forward
    return [(work.flops, work.bytes) for work in passes if work.name == name]


def test_lenets_convolutions_by_hand(lenet: OpCounts) -> None:
    """5x5 on 1x28x28 with a border of 2 to 6x28x28, then 5x5 on 6x14x14 to 16x10x10."""
    first = 2 * BATCH * 6 * 28 * 28 * (1 * 5 * 5)
    second = 2 * BATCH * 16 * 10 * 10 * (6 * 5 * 5)
    one = BATCH * 1 * 28 * 28 + (6 * 25 + 6) + BATCH * 6 * 28 * 28
    two = BATCH * 6 * 14 * 14 + (16 * 6 * 25 + 16) + BATCH * 16 * 10 * 10
    assert by_name(lenet, "convolution") == [(first, one * FLOAT), (second, two * FLOAT)]


def test_their_gradients_by_hand(lenet: OpCounts) -> None:
    """Each gradient costs what the forward pass does; pixels need none."""
    first = 2 * BATCH * 6 * 28 * 28 * 25
    second = 2 * BATCH * 16 * 10 * 10 * 150
    # read: upstream, input, weight; written: gradients of input, weight and bias
    two = (BATCH * 16 * 100 + BATCH * 6 * 196 + 16 * 150) + (BATCH * 6 * 196 + 16 * 150 + 16)
    one = (BATCH * 6 * 784 + BATCH * 784 + 6 * 25) + (6 * 25 + 6)
    found = by_name(lenet, "convolution_backward", backward=True)
    assert found == [(2 * second, two * FLOAT), (first, one * FLOAT)]


def test_its_linear_layers_by_hand(lenet: OpCounts) -> None:
    sizes = [(400, 120), (120, 84), (84, 10)]
    assert by_name(lenet, "addmm") == [
        (2 * BATCH * n * m, (BATCH * n + n * m + m + BATCH * m) * FLOAT) for n, m in sizes
    ]
    # the upstream gradient is read once for the input's gradient, the weight's and the bias's
    assert by_name(lenet, "mm", backward=True) == [
        (4 * BATCH * n * m, (BATCH * m + BATCH * n + n * m + BATCH * n + n * m + m) * FLOAT)
        for n, m in reversed(sizes)
    ]


def test_pooling_and_activations_move_bytes_and_count_no_operation(lenet: OpCounts) -> None:
    maps = BATCH * 6 * 28 * 28
    assert by_name(lenet, "sigmoid")[0] == (0, 2 * maps * FLOAT)
    assert by_name(lenet, "avg_pool2d")[0] == (0, (maps + maps // 4) * FLOAT)


def test_views_move_nothing(lenet: OpCounts) -> None:
    assert {work.name for work in lenet.step} == {
        "convolution",
        "sigmoid",
        "avg_pool2d",
        "addmm",
        "mm",
        "sigmoid_backward",
        "avg_pool2d_backward",
        "convolution_backward",
    }


def test_totals_are_sums_and_grow_with_the_batch_but_for_the_weights() -> None:
    small, large = (count_ops(create_model("lenet"), torch.rand(n, 1, 28, 28)) for n in (4, 8))
    assert large.step_flops == 2 * small.step_flops
    weights = 61_706 * FLOAT
    # twice in the backward pass of all but biases: read, and their gradients written
    assert 2 * small.step_bytes - large.step_bytes == 3 * weights - (6 + 16 + 120 + 84 + 10) * FLOAT
    assert small.step_bytes == sum(work.bytes for work in (*small.forward, *small.backward))


@pytest.mark.parametrize(("name", "size"), [("lenet", 28), ("resnet18", 32), ("mlp", 28)])
def test_operations_are_those_of_torchs_counter(name: str, size: int) -> None:
    model, images = create_model(name), torch.rand(2, 1, size, size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    counts = count_ops(model, images)
    assert counts.step_flops == counter.get_total_flops()
    assert 0 < counts.forward_flops < counts.step_flops
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_repeated_by_a_view_is_moved_once() -> None:
    class Expand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.expand(64, 10) * 2

    (work,) = count_ops(Expand(), torch.rand(1, 10)).step
    assert (work.name, work.bytes) == ("mul", (10 + 640) * FLOAT)


def test_what_is_changed_in_place_is_read_and_written() -> None:
    class Change(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_()

    (work,) = count_ops(Change(), torch.rand(8, 8)).step
    assert work.bytes == 2 * 64 * FLOAT
