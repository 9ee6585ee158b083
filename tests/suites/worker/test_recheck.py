"""What is looked at after a timing in compiled mode: the step as a whole, against that of the plain model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.registry import discover
from convbench.registry.ops.dtypes import arithmetic
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.data import image_batches
from convbench.suites.worker.recheck import recheck
from convbench.suites.worker.setup import Verdict


class Compiled(nn.Module):
    """Stands for a compiled model: `factor` times what the plain one answers."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Any:
        return self.model(x) * self.factor


class Unsteady(nn.Module):
    """No two sums have the same order, as in some of a GPU's kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 1e-6 * torch.rand_like(x))


def network(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), last)


def rechecked(model: nn.Module, factor: float) -> Verdict:
    images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    data = image_batches(images, torch.arange(8), torch.device("cpu"), torch.float32, "contiguous", None)
    setup: Any = SimpleNamespace(
        model=model,
        backend=discover(installed=()).backend("torch"),
        arithmetic=arithmetic("float32"),
        amp=Amp(),
        fuse=False,
        train_data=data,
        batch_size=8,
        cases=lambda *sizes: {},
        verify=lambda cases, seed, once: Verdict("ok"),
        check_process=lambda: None,
    )
    return recheck(setup, 1, Compiled(model, factor), trained=False)


@pytest.mark.parametrize("last", [nn.Identity(), Unsteady()])
def test_a_compiled_step_is_held_against_the_plain_one(last: nn.Module) -> None:
    assert rechecked(network(last), 1.0) == Verdict("ok")
    error = rechecked(network(last), 2.0).error
    assert error is not None
    assert error.startswith("a step of the compiled model is another one")


def test_a_model_that_has_diverged_hides_nothing() -> None:
    model = network(nn.Identity())
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert rechecked(model, 2.0).status == "incorrect"


def test_there_is_no_right_answer_of_a_model_that_draws_random_numbers() -> None:
    assert rechecked(network(nn.Dropout()), 1.0) == Verdict("ok")
