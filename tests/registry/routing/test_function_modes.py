"""Function modes of the user's see the calls of a routed model as they see those of the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from convbench.registry import Backend, use_backend

CALLED = (torch.conv2d, F.max_pool2d, torch._C._nn.avg_pool2d)


class Doubling(TorchFunctionMode):
    """Doubles what convolutions give, and counts the calls of ops."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CALLED:
            self.seen.append(func.__name__)
        output = func(*args, **(kwargs or {}))
        return 2 * output if func is torch.conv2d else output


class Within(nn.Module):
    """Runs a model under a mode of its own."""

    def __init__(self, model: nn.Module, mode: TorchFunctionMode) -> None:
        super().__init__()
        self.model, self.mode = model, mode

    def forward(self, input: Tensor) -> Any:
        with self.mode:
            return self.model(input)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.Tanh(), nn.AvgPool2d(2)
    )


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 12, 12)


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("make", [network, lambda: nn.Sequential(nn.Identity(), network())])
@pytest.mark.parametrize(
    ("name", "fuse"), [("torch", False), ("im2col", False), ("native", False), ("native", True)]
)
def test_a_mode_sees_the_calls_and_its_answer_counts(
    name: str, fuse: bool, make: Callable[[], nn.Module], where: str, images: Tensor
) -> None:
    def run(routed: Callable[[nn.Module], nn.Module]) -> tuple[Tensor, list[str]]:
        mode = Doubling()
        if where == "inside":
            return routed(Within(make(), mode))(images), mode.seen
        model = routed(make())
        with mode:
            return model(images), mode.seen

    expected, seen = run(lambda model: model)
    routes = []
    output, calls = run(lambda model: routes.append(use_backend(model, name, fuse=fuse)) or routes[0])  # type: ignore[func-returns-value]
    assert calls == seen
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert routes[0].served == "conv2d 2/2, max_pool2d 1/1, avg_pool2d 1/1"


def test_a_mode_sees_calls_of_the_model_and_none_of_the_backend(images: Tensor) -> None:
    class Names(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    backend = Backend("twice", "for this test", lambda: {"conv2d": lambda *args: torch.conv2d(*args).add(1)})
    routed = use_backend(nn.Sequential(nn.Conv2d(3, 4, 3)), backend)
    with Names():
        routed(images)
    assert "add" not in names
    assert "conv2d" in names
    assert routed.served == "conv2d 1/1"


def test_routed_models_in_one_another_and_modes_between_them(images: Tensor) -> None:
    inner_mode, outer_mode = Doubling(), Doubling()

    def model(routed: Callable[[nn.Module, str], nn.Module]) -> nn.Module:
        inner = routed(nn.Sequential(network()[0], nn.Identity()), "im2col")
        return routed(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), Within(inner, inner_mode)), "native")

    torch.manual_seed(1)
    plain = model(lambda each, _: each)
    torch.manual_seed(1)
    routed: Any = model(use_backend)
    with outer_mode:
        expected = plain(images)
        before = _get_current_function_mode_stack()
        torch.testing.assert_close(routed(images), expected, rtol=1e-4, atol=1e-5)
        assert _get_current_function_mode_stack() == before
    assert (len(inner_mode.seen), len(outer_mode.seen)) == (2, 4)
    assert routed.served == routed.model[1].model.served == "conv2d 1/1"


def test_what_is_on_afterwards_is_what_the_model_left_on(images: Tensor) -> None:
    class Failing(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            torch.set_default_device("meta")
            raise RuntimeError("no")

    mode = Doubling()
    try:
        with mode:
            with pytest.raises(RuntimeError, match=r"^no$"):
                use_backend(Failing(), "native")(images)
            assert torch.empty(0).is_meta
            assert _get_current_function_mode_stack()[1:] == [mode]
    finally:
        torch.set_default_device(None)
    assert not _get_current_function_mode_stack()
