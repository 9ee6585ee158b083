"""A backend is given nothing that its record does not claim: torch computes that, and it is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from convbench.registry import Backend, discover, use_backend
from convbench.registry.ops.contract import OPS
from convbench.registry.routing.claims import refusal_of

AVAILABLE = [name for name, each in discover(installed=()).backends.items() if each.unavailable() is None]
OTHER_DTYPES = (
    torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16,
    torch.complex64, torch.complex128,
)  # fmt: skip
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv2d": lambda: nn.Conv2d(3, 4, 3),
    "max_pool2d": lambda: nn.MaxPool2d(2),
    "avg_pool2d": lambda: nn.AvgPool2d(2),
}


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 9, 9)


def never(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("the backend was called")


NOBODY = Backend("nobody", "must not be called", lambda: dict.fromkeys(LAYERS, never))


def outcome(function: Callable[[], Tensor]) -> Tensor | str:
    """What a call returns, or how it fails."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - torch's own, of any kind
        return f"{type(error).__name__}: {error}"


def assert_alike(ours: Tensor | str, theirs: Tensor | str) -> None:
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
def test_another_dtype_is_torchs(op: str, dtype: torch.dtype, images: Tensor) -> None:
    layer = LAYERS[op]()
    if isinstance(layer, nn.Conv2d):
        layer.weight = nn.Parameter((layer.weight * 100).to(dtype), requires_grad=False)
        layer.bias = None
    model, inputs = nn.Sequential(layer), (images * 10).to(dtype)
    routed = use_backend(model, NOBODY)
    expected = outcome(lambda: model(inputs))
    assert_alike(outcome(lambda: routed(inputs)), expected)
    if not isinstance(expected, str):
        assert routed.served == f"{op} 0/1"
        name = str(dtype).removeprefix("torch.")
        assert routed.refusals == [f"{op}: {name} on cpu, which the backend does not claim"]


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("op", LAYERS)
def test_every_backend_leaves_other_dtypes_to_torch(name: str, op: str, images: Tensor) -> None:
    claimed = discover(installed=()).backend(name).dtypes
    for dtype in OTHER_DTYPES:
        if str(dtype).removeprefix("torch.") in claimed:
            continue
        model = nn.Sequential(LAYERS[op]())
        if dtype.is_floating_point or dtype.is_complex:
            model = model.to(dtype)
        inputs = (images * 10).to(dtype)
        routed = use_backend(model, name)
        assert_alike(outcome(lambda: routed(inputs)), outcome(lambda: model(inputs)))  # noqa: B023
        assert routed.served_calls == 0


def test_what_autocast_casts_to_must_be_claimed(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    routed = use_backend(model, "native")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(routed(images), model(images))
    assert routed.served == "conv2d 0/1, max_pool2d 0/1"
    assert "conv2d: bfloat16 on cpu, which the backend does not claim" in routed.refusals
    with torch.autocast("cpu", torch.bfloat16):  # pooling alone stays in float32
        assert use_backend(nn.MaxPool2d(2), "native")(images).dtype == torch.float32


class Subclass(Tensor):
    """Holds more than numbers, for all that anybody knows."""


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": torch._neg_view,
    "imaginary": lambda images: torch.complex(images, images).conj().imag,
    "subclass": lambda images: images.as_subclass(Subclass),
    "mkldnn": lambda images: images.to_mkldnn(),
    "zeros": lambda images: torch._efficientzerotensor(images.shape),
    "sparse": lambda images: images.to_sparse(),
    "quantized": lambda images: torch.quantize_per_tensor(images, 0.1, 10, torch.quint8),
    "nested": lambda images: torch.nested.nested_tensor([images[0], images[1]]),
    "conjugate": lambda images: torch.complex(images, images).conj(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("op", LAYERS)
def test_a_tensor_that_is_not_plain_is_torchs(op: str, kind: str, images: Tensor) -> None:
    model, inputs = nn.Sequential(LAYERS[op]()), STRANGE[kind](images)
    routed = use_backend(model, NOBODY)
    expected, answer = outcome(lambda: model(inputs)), outcome(lambda: routed(inputs))
    if isinstance(expected, str):
        assert answer == expected
    else:
        assert type(answer) is type(expected)
        assert isinstance(answer, Tensor)
        dense = [each.to_dense() if each.layout != torch.strided else each for each in (answer, expected)]
        if not expected.is_nested and not expected.is_quantized:
            torch.testing.assert_close(*dense, rtol=0, atol=0)


def test_a_weight_that_is_not_plain_is_torchs(images: Tensor) -> None:
    weight = torch._neg_view(torch.randn(4, 3, 3, 3))
    layer = nn.Conv2d(3, 4, 3)
    layer.weight = nn.Parameter(weight)
    for model in (layer, nn.Sequential(layer)):
        routed = use_backend(model, NOBODY)
        assert torch.equal(routed(images), model(images))
        assert routed.refusals == ["conv2d: weight is no plain tensor"]


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("op", LAYERS)
def test_every_backend_takes_gradients_that_are_not_plain(name: str, op: str, images: Tensor) -> None:
    model = nn.Sequential(LAYERS[op]())
    gradients = []
    for network in (model, use_backend(model, name)):
        for odd in (torch._neg_view, lambda given: torch._efficientzerotensor(given.shape)):
            inputs = images.clone().requires_grad_()
            output = network(inputs)
            output.backward(odd(torch.ones_like(output).cumsum(0)))
            gradients.append(inputs.grad)
    for ours, theirs in zip(gradients[2:], gradients[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", AVAILABLE)
def test_many_gradients_at_once(name: str, fuse: bool) -> None:
    """What `vmap` hands to a backward pass has no memory to read."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3), nn.Tanh(), nn.MaxPool2d(2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))
    images, directions = torch.randn(2, 1, 16, 16, requires_grad=True), torch.randn(3, 2, 5)
    found: list[list[Tensor]] = []
    for network in (model, use_backend(model, name, fuse=fuse)):
        wanted, output = [images, *model.parameters()], network(images)
        batched = torch.autograd.grad(output, wanted, directions, is_grads_batched=True, retain_graph=True)
        mapped = vmap(lambda each: torch.autograd.grad(output, wanted, each, retain_graph=True))(directions)  # noqa: B023
        (first,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
        again = torch.autograd.grad(first, images, torch.stack([first, -first]), is_grads_batched=True)
        found.append([*batched, *mapped, *again])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("op", LAYERS)
def test_meta_tensors_have_shapes(name: str, op: str, images: Tensor) -> None:
    with torch.device("meta"):
        model = nn.Sequential(LAYERS[op]())
        routed = use_backend(model, name)
        assert routed(images.to("meta")).shape == model(images.to("meta")).shape
    model = nn.Sequential(LAYERS[op]())
    with torch.device("meta"):  # a default that no tensor of the call has
        answer = use_backend(model, name)(images)
    torch.testing.assert_close(answer, model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AVAILABLE)
def test_transformations_of_torch_func_and_forward_mode(name: str, images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    routed = use_backend(model, name)

    def loss(network: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda values: functional_call(network, values, (images,)).square().sum()

    def close(ours: Any, theirs: Any) -> None:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    for ours, theirs in zip(
        grad(loss(routed))(dict(routed.named_parameters())).values(),
        grad(loss(model))(dict(model.named_parameters())).values(),
        strict=True,
    ):
        close(ours, theirs)
    close(*(jacrev(lambda x: net(x).sum((1, 2, 3)))(images) for net in (routed, model)))  # noqa: B023
    close(*(jvp(net, (images,), (images,)) for net in (routed, model)))
    close(*(vmap(net)(images[None]) for net in (routed, model)))
    tangents = []
    for net in (routed, model):
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(net(forward_ad.make_dual(images, images))).tangent)
    close(*tangents)
    assert routed.served == "conv2d 0/5, max_pool2d 0/5"
    assert "conv2d: a call under a transformation of torch.func" in routed.refusals
    assert "conv2d: a call under forward mode AD" in routed.refusals


def test_tensors_of_inference_mode_are_plain(images: Tensor) -> None:
    with torch.inference_mode():
        routed = use_backend(nn.Conv2d(3, 4, 3), "native")
        routed(images * 1)
    assert routed.served == "conv2d 1/1"


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    "two", [np.int64(2), np.int32(2), (np.int64(2), 2), [np.int16(2), np.int64(2)]], ids=str
)
def test_numpys_whole_numbers_are_options(name: str, two: Any, images: Tensor) -> None:
    one = np.int64(1)
    for layer in (nn.MaxPool2d(two), nn.AvgPool2d(two), nn.Conv2d(3, 4, 3, two, one, one)):
        model = nn.Sequential(layer)
        torch.testing.assert_close(use_backend(model, name)(images), model(images), rtol=1e-4, atol=1e-4)


def test_arguments_by_position_and_by_name_are_asked_for(images: Tensor) -> None:
    refusal = refusal_of(OPS["conv2d"], NOBODY)
    layer = nn.Conv2d(3, 4, 3)
    assert refusal(False, (images, layer.weight, layer.bias), {}) is None
    assert refusal(False, (images, layer.weight), {"bias": None}) is None
    assert refusal(False, (images.double(), layer.weight), {}) is not None
    assert refusal(False, (images,), {"weight": layer.weight.half()}) is not None


def test_a_mode_that_only_looks_on_changes_nothing(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    routed = use_backend(model, "im2col")
    with FlopCounterMode(display=False) as counter:
        routed(images)
    assert routed.served == "conv2d 1/1"
    assert counter.get_total_flops() > 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert routed(images).shape == model(images).shape
    assert routed.refusals == ["conv2d: a call that is traced"]
