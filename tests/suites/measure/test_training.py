"""The training loop: what it visits, when it stops, and what its clock counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.registry import create_model, discover, use_backend
from convbench.suites.measure.data import ImageBatches
from convbench.suites.measure.training import Progress, evaluate, prime, train

OPTIONS: dict[str, Any] = {"lr": 0.1, "epochs": 2, "batch_size": 16, "seed": 0}


def split(count: int, seed: int = 0) -> ImageBatches:
    """Random images, whose labels tell where they are."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageBatches(images, torch.arange(count), torch.float32, torch.contiguous_format)


class Stopwatch(nn.Module):
    """A model and a clock: a step takes one second, a batch of an evaluation a hundred."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.time = 0.0
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.time += 1.0 if self.training else 100.0
        if self.training:
            self.batches.append(len(x))
        scores: Tensor = self.linear(x.flatten(1))
        return scores

    def now(self) -> float:
        return self.time


def run(data: ImageBatches, **options: Any) -> tuple[Stopwatch, list[Progress]]:
    torch.manual_seed(0)
    model = Stopwatch(classes=len(data))
    return model, list(train(model, data, split(10), now=model.now, **OPTIONS | options))


def test_every_epoch_visits_every_image_once_and_the_last_batch_is_smaller() -> None:
    visited: list[int] = []

    class Spy(ImageBatches):
        def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
            visited.extend(index.tolist())
            return super().batch(index)

    data = split(90)
    model, progress = run(Spy(data.images, data.labels, data.dtype, data.memory_format))

    first, second = visited[:90], visited[90:]
    assert sorted(first) == sorted(second) == list(range(90))
    assert first != second
    assert first != sorted(first)
    assert model.batches == [16, 16, 16, 16, 16, 10] * 2
    assert [(each.epochs, each.steps, each.images) for each in progress] == [(1, 6, 90), (2, 12, 180)]
    assert all(each.within_budget for each in progress)


def test_evaluation_is_outside_the_clock() -> None:
    model, progress = run(split(90))
    assert [each.train_seconds for each in progress] == [6.0, 12.0]
    assert model.time == 12 + 200  # it did evaluate


@pytest.mark.parametrize(
    ("budget", "steps", "epochs"),
    [(0.5, 1, 16 / 90), (4.0, 4, 64 / 90), (6.0, 6, 1.0), (8.0, 8, 1 + 32 / 90)],
)
def test_a_budget_ends_an_epoch_where_it_stands(budget: float, steps: int, epochs: float) -> None:
    _, progress = run(split(90), budget_seconds=budget)
    assert progress[-1].steps == steps == progress[-1].train_seconds
    assert progress[-1].epochs == pytest.approx(epochs)
    assert not progress[-1].within_budget


def test_a_budget_that_lasts_exactly_to_the_end_is_kept() -> None:
    _, progress = run(split(90), budget_seconds=12.0)
    assert progress[-1].epochs == 2
    assert progress[-1].within_budget


def test_it_says_about_once_a_second_how_far_it_is_and_never_at_every_step() -> None:
    """A step takes one second of this clock; halve it, and every other step says something."""
    beats: list[tuple[int, float, float | None]] = []
    torch.manual_seed(0)
    model = Stopwatch(classes=90)
    data, options = split(90), OPTIONS | {"epochs": 1}
    for progress in train(
        model,
        data,
        split(10),
        now=lambda: model.time / 2,
        beat=lambda *so_far: beats.append(so_far),
        **options,
    ):
        last = progress
    assert [steps for steps, _, _ in beats] == [2, 4, 6]
    assert [epoch for _, epoch, _ in beats] == [steps * 16 / 90 for steps in (2, 4, 6)]
    assert beats[-1][2] == pytest.approx(last.train_loss, rel=0.2)  # the mean of the epoch so far


def test_a_loss_that_is_no_number_ends_it() -> None:
    _, progress = run(split(90), lr=3e38, epochs=9)
    assert progress[-1].diverged
    assert len(progress) < 9


def test_the_training_loss_is_the_mean_over_the_epochs_steps() -> None:
    data = split(32)
    torch.manual_seed(0)
    model = Stopwatch(classes=32)
    (progress,) = train(model, data, split(10), lr=1e-30, epochs=1, batch_size=16, seed=0)
    model.eval()
    with torch.no_grad():
        exact = nn.functional.cross_entropy(model(data.batch(torch.arange(32))[0]), data.labels)
    assert progress.train_loss == pytest.approx(float(exact), rel=1e-5)


def test_an_evaluation_counts_every_image_once() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.tensor([[0.0, math.log(3.0)]]).repeat(len(x), 1)

    data = split(90)
    halves = ImageBatches(data.images, (torch.arange(90) < 30).long(), data.dtype, data.memory_format)
    found = evaluate(Half(), halves, batch_size=16)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.loss == pytest.approx((30 * math.log(4 / 3) + 60 * math.log(4)) / 90)
    assert found.images == 90


class Watched(ImageBatches):
    """Notes which images it hands out."""

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        handed_out.extend(index.tolist())
        return super().batch(index)


handed_out: list[int] = []


def watched(count: int) -> Watched:
    data = split(count)
    handed_out.clear()
    return Watched(data.images, torch.zeros_like(data.labels), data.dtype, data.memory_format)


def test_an_evaluation_ends_with_its_budget_on_images_that_are_always_the_same() -> None:
    model, data = Stopwatch(classes=90), watched(90)
    found = evaluate(model, data, 16, budget_seconds=250.0, now=model.now)
    assert model.time == 300  # the batch that reaches the budget is the last
    assert found.images == len(handed_out) == 48
    assert found.loss == pytest.approx(expected_loss(model, data, handed_out[:48]), rel=1e-5)
    longer = list(handed_out)
    assert sorted(longer) != list(range(48))  # not those that happen to come first in the file
    handed_out.clear()
    assert evaluate(model, data, 16, budget_seconds=1.0, now=model.now).images == 16
    assert handed_out == longer[:16]
    handed_out.clear()
    assert evaluate(model, data, 16, budget_seconds=1e9, now=model.now).images == 90
    assert sorted(handed_out) == list(range(90))


def expected_loss(model: nn.Module, data: ImageBatches, chosen: list[int]) -> float:
    model.eval()
    with torch.no_grad():
        images, labels = ImageBatches.batch(data, torch.tensor(chosen))
        return float(nn.functional.cross_entropy(model(images), labels))


def test_an_evaluation_that_would_take_longer_than_training_might_says_so_and_ends() -> None:
    said: list[float] = []
    model, data = Stopwatch(classes=90), split(90)
    options = OPTIONS | {"budget_seconds": 2.0}
    (progress,) = train(
        model, data, watched(90), now=model.now, evaluating=lambda: said.append(model.time), **options
    )
    assert said == [2.0]  # before it evaluates
    assert progress.evaluated == 16
    assert model.time == 102
    assert not progress.within_budget


def test_an_evaluation_that_is_soon_over_is_of_all_images_in_their_order() -> None:
    def evaluating() -> None:
        raise AssertionError("nothing to say")

    model = Stopwatch(classes=90)
    *_, progress = train(
        model, split(90), watched(40), now=model.now, evaluating=evaluating, budget_seconds=8.0, **OPTIONS
    )
    assert progress.evaluated == 40
    assert handed_out == list(range(40)) * 2


def on_the_sample(seed: int) -> list[Progress]:
    images = discover().dataset("fashion-mnist-sample").load(None)
    data, validation = (
        ImageBatches(pictures[:count], labels[:count], torch.float32, torch.contiguous_format)
        for pictures, labels, count in (
            (images.train_images, images.train_labels, 3000),
            (images.test_images, images.test_labels, 500),
        )
    )
    torch.manual_seed(seed)
    model = use_backend(create_model("mlp"), "torch")
    return list(train(model, data, validation, lr=0.1, epochs=2, batch_size=128, seed=seed))


def test_on_real_images_the_loss_falls_and_a_seed_gives_the_same_again() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, again, other = on_the_sample(0), on_the_sample(0), on_the_sample(1)
    finally:
        torch.set_num_threads(threads)
    assert first[1].train_loss < 0.8 * first[0].train_loss
    assert first[1].val_accuracy > 0.5
    results = [
        [(each.train_loss, each.val_loss, each.val_accuracy) for each in it] for it in (first, again, other)
    ]
    assert results[0] == results[1] != results[2]


def test_priming_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.LazyLinear(10)
    )
    images, labels = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8), torch.arange(8)
    data = ImageBatches(images, labels, torch.float32, torch.contiguous_format)
    model(data.batch(labels)[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    prime(model, data, 8)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
