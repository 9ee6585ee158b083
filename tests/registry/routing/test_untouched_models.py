"""The user's model is run as it is: patches and hooks in it work, and other threads may use it meanwhile."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from convbench.registry import Backend, use_backend

CONV2D = F.conv2d


def plus(offset: float) -> Backend:
    """A backend whose answers show who gave them, and whose gradients are torch's."""

    def conv2d(input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        return CONV2D(input, weight, *args) + offset

    def max_pool2d(*args: Any) -> Tensor:
        return torch.max_pool2d(*args) + offset

    return Backend("plus", "for these tests", lambda: {"conv2d": conv2d, "max_pool2d": max_pool2d})


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 9, 9)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- patches ----------------------------------------------------------------------------------------------------

OWN: dict[str, Callable[[Any], Any]] = {
    "_conv_forward": lambda layer: lambda x, weight, bias: F.conv2d(2 * x, weight, bias),
    "forward": lambda layer: lambda x: F.conv2d(2 * x, layer.weight, layer.bias),
    "_compiled_call_impl": lambda layer: lambda x: F.conv2d(2 * x, layer.weight, layer.bias),
}


@pytest.mark.parametrize("first", ["patched", "routed"])
@pytest.mark.parametrize("name", OWN)
def test_a_method_of_a_layers_own_is_called(name: str, first: str, images: Tensor) -> None:
    layer = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(layer, nn.ReLU())
    expected = (F.conv2d(2 * images, layer.weight, layer.bias) + 100).relu()
    if first == "patched":
        setattr(layer, name, OWN[name](layer))
    routed = use_backend(model, plus(100))
    routed(images)
    setattr(layer, name, OWN[name](layer))
    assert torch.equal(routed(images), expected)
    assert name in vars(layer)
    delattr(layer, name)
    assert torch.equal(routed(images), (layer(images) + 100).relu())


CLASSES: list[tuple[type, str, Callable[..., Any]]] = [
    (nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: F.conv2d(2 * x, weight, bias)),
    (nn.Conv2d, "forward", lambda self, x: F.conv2d(2 * x, self.weight, self.bias)),
    (nn.Sequential, "forward", lambda self, x: self[0](2 * x)),
]


@pytest.mark.parametrize(("kind", "name", "function"), CLASSES, ids=("conv", "forward", "sequential"))
def test_a_method_of_a_class_is_called(
    kind: type, name: str, function: Callable[..., Any], images: Tensor
) -> None:
    layer = nn.Conv2d(3, 4, 3)
    routed = use_backend(nn.Sequential(layer), plus(100))
    expected = routed(2 * images)
    with replaced(kind, name, function):
        assert torch.equal(routed(images), expected)
        assert torch.equal(use_backend(nn.Sequential(layer), plus(100))(images), expected)
    assert torch.equal(routed(2 * images), expected)


def test_a_function_that_layers_call_is_called(images: Tensor) -> None:
    layer = nn.Conv2d(3, 4, 3)
    routed = use_backend(nn.Sequential(layer), plus(100))
    expected = routed(2 * images)
    with replaced(F, "conv2d", lambda x, *args: CONV2D(2 * x, *args)):
        assert torch.equal(routed(images), expected)


def test_a_padding_mode_that_is_set_later_is_kept_to(images: Tensor) -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    model = nn.Sequential(layer)
    routed = use_backend(model, plus(100))
    routed(images)
    layer.padding_mode = "circular"
    layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert torch.equal(routed(images), model(images) + 100)


def test_subclasses_parametrizations_and_lazy_layers(images: Tensor) -> None:
    class Half(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input / 2)

    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    old = nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)).eval()
    for layer in (Half(3, 4, 3), normed, old, nn.LazyConv2d(4, 3)):
        model = nn.Sequential(layer)
        routed = use_backend(model, plus(100))
        first = routed(images)
        assert torch.equal(first, model(images) + 100)
        assert torch.equal(routed(images), first)


def test_layers_put_in_replaced_and_taken_out_count_at_once(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU()))
    routed = use_backend(model, plus(100))
    routed(images)
    model[1].append(nn.MaxPool2d(2))  # type: ignore[operator]
    assert torch.equal(routed(images), F.max_pool2d((model[0](images) + 100).relu(), 2) + 100)
    model[0] = nn.Conv2d(3, 2, 5)
    assert routed(images).shape[1] == 2
    del model[1]
    assert torch.equal(routed(images), model(images) + 100)


def test_a_missing_layer_fails_as_in_torch(images: Tensor) -> None:
    model = nn.Sequential(nn.ReLU())
    model._modules["1"] = None
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        use_backend(model, plus(100))(images)


# --- hooks ------------------------------------------------------------------------------------------------------


def test_hooks_see_the_users_own_modules(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU()))
    routed = use_backend(model, plus(100))
    seen: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: seen.append(module))
        module.register_forward_pre_hook(lambda module, *_: seen.append(module))
    routed(images)
    expected = [model, model[0], model[0], model[1], model[1][0], model[1][0], model[1], model]  # type: ignore[index]
    assert [id(each) for each in seen] == [id(each) for each in expected]
    assert routed.served == "conv2d 1/1"


@pytest.mark.parametrize("where", ["the whole", "a layer", "everywhere"])
def test_a_hook_that_calls_the_model_is_counted(where: str, images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    routed = use_backend(model, plus(100))
    again = [routed, model, model[0]]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        others = again.copy()
        again.clear()
        assert all(other(images).max() > 50 for other in others)

    if where == "everywhere":
        handle = nn.modules.module.register_module_forward_hook(hook)
    else:
        handle = (model if where == "the whole" else model[0]).register_forward_hook(hook)
    routed(images)
    handle.remove()
    assert (routed.served, routed.passes) == ("conv2d 4/4", 2)


# --- threads ----------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Calls an op by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight)


def in_threads(*functions: Callable[[], Any], times: int = 200) -> None:
    """Each of them that often, in a thread of its own; raises what one of them raises."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def work(function: Callable[[], Any]) -> None:
        start.wait()
        try:
            for _ in range(times):
                function()
        except BaseException as error:  # noqa: BLE001 - of an assertion
            errors.append(error)

    threads = [threading.Thread(target=work, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), Functional])
@pytest.mark.parametrize("fuse", [False, True])
def test_threads_share_a_model(make: Callable[[], nn.Module], fuse: bool, images: Tensor) -> None:
    model = make()
    first, second = use_backend(model, plus(1000), fuse=fuse), use_backend(model, plus(5000))
    with torch.no_grad():

        def check(network: nn.Module, low: float, high: float) -> None:
            assert low < network(images).max() < high

        in_threads(
            lambda: check(model, -500, 500),
            lambda: check(first, 500, 1500),
            lambda: check(second, 4500, 5500),
            lambda: check(first, 500, 1500),
        )
    assert (first.served, first.passes) == ("conv2d 400/400", 400)
    assert (second.served, second.passes) == ("conv2d 200/200", 200)


# --- checkpoints ------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Computes a part of itself again in backward, in one of the ways in which that is written."""

    def __init__(self, way: str, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3) / 9)
        self.way, self.reentrant = way, reentrant

    def inner(self, images: Tensor) -> Tensor:
        return self.block(F.conv2d(images, self.weight))  # type: ignore[no-any-return]

    def again(self, function: Any, images: Tensor) -> Tensor:
        return checkpoint(function, images, use_reentrant=self.reentrant)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        if self.way == "segments":
            return checkpoint_sequential(self.block, 2, images, use_reentrant=self.reentrant)  # type: ignore[no-any-return]
        function: Any = {
            "module": self.block,
            "method": self.inner,
            "closure": lambda x: self.block(F.conv2d(x, self.weight)),
            "nested": lambda x: self.again(self.inner, x),
        }[self.way]
        return self.again(function, images)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", ["module", "method", "closure", "nested", "segments"])
@pytest.mark.parametrize("name", ["native", "im2col", "fft"])
def test_what_is_computed_again_is_routed_again(name: str, way: str, reentrant: bool, images: Tensor) -> None:
    model = Checkpointed(way, reentrant)
    routed = use_backend(nn.Sequential(model), name)
    gradients = []
    for network in (model, routed):
        inputs = images.clone().requires_grad_()
        model.zero_grad()
        network(inputs).square().sum().backward()
        gradients.append([inputs.grad, *(each.grad for each in model.parameters())])
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    in_forward = 2 if way in ("module", "segments") else 3
    assert routed.served_calls == routed.calls > in_forward
    with torch.no_grad():
        routed(images)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_has_the_backends_gradients(reentrant: bool, images: Tensor) -> None:
    """The backend's convolution is the double of torch's: torch's own, computed again, had half the gradient."""

    def doubled(*args: Any) -> Tensor:
        return 2 * CONV2D(*args)

    model = Checkpointed("method", reentrant)
    routed = use_backend(model, Backend("doubled", "", lambda: {"conv2d": doubled}))
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        use_backend(_NotCheckpointed(model), routed.backend)(inputs).sum(), inputs
    )
    routed(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, gradient)
    assert torch.equal(model(images), _NotCheckpointed(model)(images))  # by torch, as before


class _NotCheckpointed(nn.Module):
    def __init__(self, model: Checkpointed) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.inner(images)


@pytest.mark.parametrize("name", ["native", "auto"])
def test_a_selective_checkpoint(name: str, images: Tensor) -> None:
    """It keeps what ops computed, in their order: nothing may be computed beside them once and not again."""

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if "conv" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE

    class Checkpointed(nn.Sequential):
        def forward(self, input: Tensor) -> Any:
            contexts = partial(create_selective_checkpoint_contexts, policy)
            return checkpoint(super().forward, input, use_reentrant=False, context_fn=contexts)

    model = Checkpointed(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(5, 3, 2))
    gradients = []
    for network in (model, use_backend(model, name)):
        for _ in range(2):
            inputs = images.clone().requires_grad_()
            network(inputs).sum().backward()
            gradients.append(inputs.grad)
    for ours in gradients[1:]:
        torch.testing.assert_close(ours, gradients[0], rtol=1e-4, atol=1e-4)


def test_a_routed_model_in_a_checkpoint(images: Tensor) -> None:
    routed = use_backend(nn.Sequential(nn.Conv2d(3, 4, 3)), "native")
    for reentrant in (False, True):
        inputs = images.clone().requires_grad_()
        checkpoint(routed, inputs, use_reentrant=reentrant).sum().backward()
    assert routed.served_calls == routed.calls >= 3  # torch may stop before the last one is over


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_a_routed_model_routes_that_model_alone(reentrant: bool, images: Tensor) -> None:
    """Calls beside it are torch's when they are computed again, as they were the first time."""
    inner, weight = use_backend(Functional(), plus(100)), nn.Parameter(torch.randn(2, 4, 3, 3))
    outer = use_backend(Functional(), plus(5000))
    seen: list[Tensor] = []

    def part(inputs: Tensor) -> Tensor:
        seen.append(F.conv2d(inner(inputs) - 100, weight).detach())
        with torch.no_grad():
            outer(inputs)
        return F.conv2d(inner(inputs), weight) * outer(inputs).mean()

    inputs = images.clone().requires_grad_()
    checkpoint(part, inputs, use_reentrant=reentrant).square().sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_two_backends_in_one_checkpoint_are_entered_once(images: Tensor) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = use_backend(Functional(), plus(100))
            self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))

        def forward(self, images: Tensor) -> Tensor:
            def part(inputs: Tensor) -> Tensor:
                for _ in range(20):
                    inputs = F.conv2d(inputs, self.weight, padding=1)
                return self.inner(inputs)  # type: ignore[no-any-return]

            return checkpoint(part, images, use_reentrant=False)  # type: ignore[no-any-return]

    model = Many()
    routed = use_backend(model, "im2col")
    routed(images.clone().requires_grad_()).sum().backward()
    assert routed.served_calls == routed.calls >= 41
    assert model.inner.served_calls == model.inner.calls >= 1


# --- a torch whose checkpoints are others -----------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("private", ["gen", "new_frame", "recompute_fn", "run_function", "ctx"])
def test_a_checkpoint_that_is_not_known_is_torchs(
    private: str, reentrant: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are private to torch; what backward would compute on torch is not counted as the backend's."""
    source = inspect.getsource(torch.utils.checkpoint)
    other = ModuleType("torch.utils.checkpoint")
    exec(re.sub(rf"\b{private}\b", f"{private}_of_later", source), vars(other))
    monkeypatch.setattr(torch.utils, "checkpoint", other)
    monkeypatch.setitem(globals(), "checkpoint", other.checkpoint)
    model = Checkpointed("method", reentrant)
    routed = use_backend(nn.Sequential(model), plus(100))
    gradients = []
    for network in (model, routed):
        inputs = images.clone().requires_grad_()
        outputs = network(inputs)
        outputs.square().sum().backward()
        gradients.append((outputs, inputs.grad))
    if routed.served_calls:  # the name is not one that this kind of checkpoint has
        assert routed.served_calls == routed.calls >= 5
    else:
        assert routed.calls == 3
        assert routed.refusals == ["conv2d: a checkpoint of an unknown version of torch"]
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.equal(ours, theirs)
    assert bool(routed.served_calls) == (reentrant == (private in ("gen", "new_frame", "recompute_fn")))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_without_gradients_are_routed(reentrant: bool, images: Tensor) -> None:
    routed = use_backend(nn.Sequential(Checkpointed("segments", reentrant)), plus(100))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            routed(images)
    assert routed.served_calls == routed.calls == 4
