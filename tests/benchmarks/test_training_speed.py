"""The training loop against the tightest plain PyTorch loop for the same recipe on the same resident data."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interleaving import interleave
from torch import Tensor, nn

from convbench.registry import create_model, discover, use_backend
from convbench.registry.ops.contract import OPS
from convbench.registry.routing.claims import refusal_of
from convbench.registry.routing.stock import LAYERS, call_of
from convbench.suites.measure.data import image_batches
from convbench.suites.measure.training import train
from convbench.suites.worker.setup import set_process

BATCH, STEPS, ROUNDS = 128, 50, 25


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    set_process(torch.get_num_threads())  # as in a worker, for both sides
    data = discover().dataset("fashion-mnist-sample").load(None)
    repeated = torch.arange(BATCH * STEPS) % len(data.train_labels)
    return data.train_images[repeated], data.train_labels[repeated]


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return create_model("lenet")


def plain_epoch(images: Tensor, labels: Tensor) -> float:
    """Images per second of one epoch, with nothing in the loop that training does not need."""
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    for index in order.split(BATCH):
        x = images[index].float().div_(255)
        loss = F.cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(labels) / (time.perf_counter() - start)


def convbench_epoch(images: Tensor, labels: Tensor) -> float:
    """The same through convbench: routed to the `torch` backend, by its own loop."""
    model = use_backend(lenet(), "torch")
    where = (torch.device("cpu"), torch.float32, "contiguous", None)
    training, validation = (
        image_batches(images, labels, *where),
        image_batches(images[:BATCH], labels[:BATCH], *where),
    )
    (progress,) = train(model, training, validation, lr=0.1, epochs=1, batch_size=BATCH, seed=0)
    return progress.images / progress.train_seconds


def test_training_is_as_fast_as_a_plain_loop(benchmark: Any, images: tuple[Tensor, Tensor]) -> None:
    pair = interleave(benchmark, lambda: convbench_epoch(*images), lambda: plain_epoch(*images), ROUNDS)
    pair.record(benchmark)
    assert pair.ratio >= 0.97


def test_routing_costs_less_than_a_hundredth_of_a_step(benchmark: Any, images: tuple[Tensor, Tensor]) -> None:
    """Single steps in turn, plain and routed, on one model: the ratio of their medians."""
    model = lenet()
    routed = use_backend(model, "torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images[0][:BATCH].float().div_(255), images[1][:BATCH]

    def step(network: nn.Module) -> float:
        start = time.perf_counter()
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    pair = interleave(benchmark, lambda: step(routed), lambda: step(model), rounds=1500)
    pair.record(benchmark)
    assert pair.ratio <= 1.01


def test_routing_native_costs_less_than_a_hundredth_of_a_step(
    benchmark: Any, images: tuple[Tensor, Tensor]
) -> None:
    """Passes of one image in turn, routed and by direct calls: the difference is routing's; and whole steps."""
    model, backend = lenet(), discover().backend("native")
    routed, image = use_backend(model, backend), torch.rand(1, 1, 28, 28)
    x, y = images[0][:BATCH].float().div_(255), images[1][:BATCH]

    def direct(x: Tensor) -> Tensor:
        for layer in model:  # type: ignore[attr-defined]
            op = LAYERS.get(type(layer))
            x = layer(x) if op is None else call_of(layer, backend.ops[op])(x)
        return x

    def forward(network: Any) -> float:
        start = time.perf_counter()
        network(image)
        return time.perf_counter() - start

    def step() -> float:
        start = time.perf_counter()
        F.cross_entropy(routed(x), y).backward()
        return time.perf_counter() - start

    pair = interleave(benchmark, lambda: forward(routed), lambda: forward(direct), rounds=3000)
    step_seconds = median(step() for _ in range(200))
    cost = median(pair.ours) - median(pair.theirs)
    benchmark.extra_info.update(routing_us=1e6 * cost, step_ms=1e3 * step_seconds)
    assert cost <= 0.01 * step_seconds


def test_asking_a_record_costs_microseconds(benchmark: Any) -> None:
    refusal = refusal_of(OPS["conv2d"], discover().backend("native"))
    layer, image = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 9, 9)
    assert benchmark(refusal, False, (image, layer.weight, layer.bias), {}) is None
    assert benchmark.stats.stats.median <= 20e-6
