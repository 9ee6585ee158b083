"""convbench trains as the book does: the same losses, step by step, from the same weights and batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import exhaustive
from convbench.registry import create_model, discover
from convbench.suites.measure.data import ImageBatches
from convbench.suites.measure.training import train

STEPS = 50


@dataclass(frozen=True)
class Recorded(ImageBatches):
    """Training data that remembers the loss of every batch."""

    losses: list[float] = field(default_factory=list)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().objective(outputs, targets)
        self.losses.append(loss.item())
        return loss


def book_losses(
    net: nn.Module, images: Tensor, labels: Tensor, lr: float, batch_size: int, seed: int
) -> list[float]:
    """The loop of Dive into Deep Learning, 3.2 and 4.4, restated: shuffled minibatches, cross-entropy, SGD."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    losses = []
    net.train()
    for first in range(0, len(labels), batch_size):
        chosen = order[first : first + batch_size]
        x, y = images[chosen], labels[chosen]
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("architecture", "options", "size", "batch_size", "steps"),
    [
        ("lenet", {}, 28, 128, STEPS),
        ("vgg11_narrow", {"image_size": 32}, 32, 16, 10),
        ("resnet18", {}, 32, 8, 10),
        exhaustive("vgg11_narrow", {"image_size": 32}, 32, 16, STEPS),
        exhaustive("resnet18", {}, 32, 8, STEPS),
    ],
)
def test_same_losses_as_the_book(
    architecture: str, options: dict[str, Any], size: int, batch_size: int, steps: int
) -> None:
    registry = discover()
    sample = registry.dataset("fashion-mnist-sample").load(None)
    images, labels = sample.train_images[: steps * batch_size], sample.train_labels[: steps * batch_size]
    recipe = registry.architecture(architecture).recipe
    resize = None if size == 28 else (size, size)

    torch.manual_seed(0)
    net = create_model(architecture, **options, registry=registry)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    resized = images.float() / 255
    if resize:
        resized = F.interpolate(resized, size=resize, mode="bilinear", align_corners=False, antialias=True)
    torch.manual_seed(1)  # of dropout
    expected = book_losses(net, resized, labels, recipe.lr, batch_size, seed=2)

    model = create_model(architecture, backend="torch", **options, registry=registry)
    model.model.load_state_dict(start)
    data = Recorded(images, labels, torch.float32, torch.contiguous_format, resize)
    few = ImageBatches(
        images[:batch_size], labels[:batch_size], torch.float32, torch.contiguous_format, resize
    )
    torch.manual_seed(1)
    (progress,) = train(model, data, few, lr=recipe.lr, epochs=1, batch_size=batch_size, seed=2)

    assert progress.steps == len(data.losses) == steps
    for ours, theirs in zip(data.losses, expected, strict=True):
        assert abs(ours - theirs) < 1e-4 * theirs


@pytest.mark.parametrize("backend", ["shift", exhaustive("im2col"), exhaustive("fft")])
def test_other_backends_follow_the_same_losses(backend: str) -> None:
    """Rounding differs, and over 50 steps of LeNet it stays rounding."""
    registry = discover()
    sample = registry.dataset("fashion-mnist-sample").load(None)
    images, labels = sample.train_images[: STEPS * 32], sample.train_labels[: STEPS * 32]
    torch.manual_seed(0)
    net = create_model("lenet", registry=registry)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    expected = book_losses(net, images.float() / 255, labels, 0.1, 32, seed=2)
    model = create_model("lenet", backend=backend, registry=registry)
    model.model.load_state_dict(start)
    data = Recorded(images, labels, torch.float32, torch.contiguous_format)
    few = ImageBatches(images[:32], labels[:32], torch.float32, torch.contiguous_format)
    list(train(model, data, few, lr=0.1, epochs=1, batch_size=32, seed=2))
    for ours, theirs in zip(data.losses, expected, strict=True):
        assert abs(ours - theirs) < 1e-4 * theirs
