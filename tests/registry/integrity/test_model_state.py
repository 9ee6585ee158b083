"""What an op may not change of tensors and models: anything but their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convbench.registry import Backend
from convbench.registry.conformance.verify import verify
from convbench.registry.integrity.model_state import ModelState, tensors_kept
from convbench.registry.integrity.monkeypatch_guard import IntegrityError


def model() -> nn.Sequential:
    layers = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2))
    return nn.Sequential(*layers)


def nothing(*args: object) -> None:
    """A hook."""


CHANGES: dict[str, Callable[[Any], Any]] = {
    "requires_grad of 0.weight changed from True to False": lambda m: m[0].weight.requires_grad_(False),
    "hooks of 0.weight changed": lambda m: m[0].weight.register_hook(nothing),
    "hooks for its gradient of 5.bias changed": lambda m: m[5].bias.register_post_accumulate_grad_hook(
        nothing
    ),
    "the memory of 0.weight changed": lambda m: setattr(m[0].weight, "data", m[0].weight.detach().clone()),
    "the shape of 0.weight changed": lambda m: setattr(m[0].weight, "data", m[0].weight.detach()[:, :, :2]),
    "the tensor of 0.weight changed": lambda m: setattr(
        m[0], "weight", nn.Parameter(m[0].weight.data, requires_grad=True)
    ),
    "the class of 0 (Conv2d) changed": lambda m: setattr(m[0], "__class__", type("Conv2d", (nn.Conv2d,), {})),
    "stride of 0 (Conv2d) changed from (1, 1) to (2, 2)": lambda m: setattr(m[0], "stride", (2, 2)),
    "momentum of 1 (BatchNorm2d) changed from 0.1 to 0.0": lambda m: setattr(m[1], "momentum", 0.0),
    "p of 3 (Dropout) changed from 0.5 to 0.0": lambda m: setattr(m[3], "p", 0.0),
    "forward of 5 (Linear) changed": lambda m: setattr(m[5], "forward", nothing),
    "_forward_pre_hooks of the model (Sequential) changed": lambda m: m.register_forward_pre_hook(nothing),
    "_forward_hooks of 2 (ReLU) changed": lambda m: m[2].register_forward_hook(nothing),
    "0.bias of the model was removed": lambda m: m[0].register_parameter("bias", None),
    "3.scale of the model was added": lambda m: m[3].register_buffer("scale", torch.ones(1)),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_change_of_a_model_is_named(words: str) -> None:
    subject = model()
    state = ModelState(subject)
    state.check()
    CHANGES[words](subject)
    with pytest.raises(IntegrityError) as caught:
        state.check()
    assert words in str(caught.value)


def test_training_changes_nothing_but_numbers() -> None:
    subject = model()
    state = ModelState(subject)
    optimizer = torch.optim.SGD(subject.parameters(), lr=0.1)
    for train in (True, False, True):
        subject.train(train)
        loss = subject(torch.randn(4, 1, 4, 4)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    subject.load_state_dict(model().state_dict())
    state.check()


def test_what_a_call_does_to_a_tensor_is_named() -> None:
    weight = torch.randn(2, requires_grad=True)
    with tensors_kept({"weight": weight}):
        (weight * 2).sum()
    words = "requires_grad of weight changed from True to False"
    with pytest.raises(IntegrityError, match=words), tensors_kept({"weight": weight}):
        weight.requires_grad_(False)
    weight.requires_grad_()
    with pytest.raises(IntegrityError, match="grad of weight changed"), tensors_kept({"weight": weight}):
        weight.grad = torch.zeros(2)


@pytest.mark.parametrize("words", ["hooks of weight changed", "grad of weight changed"])
def test_verification_looks_at_what_it_hands_over(words: str) -> None:
    def conv2d(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = F.conv2d(input, weight, *args, **kwargs)
        if weight.requires_grad and words.startswith("hooks"):
            weight.register_hook(lambda gradient: gradient)
        elif weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
        return output

    report = verify(Backend("hooks", "a cheat", load=lambda: {"conv2d": conv2d}), generated=0)
    assert words in report.failures[0].message
