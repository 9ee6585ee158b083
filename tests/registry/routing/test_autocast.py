"""Under autocast a routed backend is given what torch's own ops would be, and float32 weights learn by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry import Backend, use_backend


def recording(seen: list[tuple[str, set[torch.dtype], bool]]) -> Backend:
    """torch's ops, which note the dtypes they are given and whether autocast is on within."""

    def op(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            seen.append((name, {each.dtype for each in tensors}, torch.is_autocast_enabled("cpu")))
            return function(*args, **kwargs)

        return call

    ops = {"conv2d": op("conv2d", F.conv2d), "max_pool2d": op("max_pool2d", F.max_pool2d)}
    dtypes = ("float32", "float64", "bfloat16", "float16")
    return Backend("recording", "for these tests", lambda: ops, dtypes=dtypes)


class Functional(nn.Module):
    """A network that calls an op by itself, and so is routed by a mode."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(F.max_pool2d(images, 2))
        return scores


def network(functional: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.LazyLinear(10)
    )
    model = Functional(layers) if functional else layers
    model(torch.zeros(1, 1, 24, 24))
    return model


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_given_the_dtype_of_autocast_and_pooling_what_there_is(
    dtype: torch.dtype, functional: bool
) -> None:
    seen: list[tuple[str, set[torch.dtype], bool]] = []
    model = network(functional)
    routed = use_backend(model, recording(seen))
    with torch.autocast("cpu", dtype):
        scores = routed(torch.randn(8, 1, 24, 24))
    expected = [("conv2d", {dtype}, False), ("max_pool2d", {dtype}, False), ("conv2d", {dtype}, False)]
    assert seen == [("max_pool2d", {torch.float32}, False)] * functional + expected
    assert scores.dtype == dtype  # the linear layer's, which autocast itself casts
    scores.float().square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.any()


def test_it_is_what_torch_does_without_a_route() -> None:
    images, answers = torch.randn(8, 1, 24, 24), []
    for route in (lambda model: model, lambda model: use_backend(model, "torch")):
        model = network(functional=False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = route(model)(images).float().square().mean()
        loss.backward()
        answers.append([loss.detach(), *(each.grad for each in model.parameters())])
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)


def test_without_autocast_and_for_float64_nothing_is_cast() -> None:
    seen: list[tuple[str, set[torch.dtype], bool]] = []
    routed = use_backend(network(functional=False), recording(seen))
    routed(torch.randn(2, 1, 24, 24))
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        routed(torch.randn(2, 1, 24, 24))
    assert {dtype for _, dtypes, _ in seen for dtype in dtypes} == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert routed.double()(torch.randn(2, 1, 24, 24).double()).dtype == torch.float64
    assert {dtype for _, dtypes, _ in seen for dtype in dtypes} == {torch.float64}


def test_a_compiled_model_is_cast_too() -> None:
    model = network(functional=False)
    routed = use_backend(model, "torch")
    compiled = torch.compile(routed, backend="aot_eager", fullgraph=True)
    images = torch.randn(4, 1, 24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(compiled(images), routed(images))
        assert compiled(images).dtype == torch.bfloat16
    torch.compiler.reset()
