"""`use_backend`: the backend computes what it can, torch the rest, and both are counted."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry import (
    Backend,
    PluginError,
    UnknownName,
    Unsupported,
    UsageError,
    create_model,
    discover,
    use_backend,
)
from convbench.registry.ops.window import conv2d_window


def backend(**ops: Callable[..., Any]) -> Backend:
    return Backend("fake", "for these tests", lambda: ops)


def marked(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """A convolution whose answer shows who gave it."""
    return F.conv2d(input, weight, bias, *args, **kwargs) + 1000


def only_stride_1(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, *args: Any
) -> Tensor:
    if conv2d_window(input, weight, bias, stride, *args).stride != (1, 1):
        raise Unsupported("only stride 1")
    return marked(input, weight, bias, stride, *args)


class Functional(nn.Module):
    """Calls the ops as functions, in each way a model may write them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = torch.conv2d(x, weight=self.weight.expand(2, 2, 3, 3), stride=1)
        x = F.max_pool2d(x, 2)
        x = torch.max_pool2d(x, kernel_size=2, stride=1)
        x = F.max_pool2d(x, 2, stride=1, return_indices=False)
        return F.avg_pool2d(x, kernel_size=2, stride=1)


def test_calls_go_to_the_backend() -> None:
    layer = nn.Conv2d(1, 2, 3)
    image = torch.randn(1, 1, 5, 5)
    routed = use_backend(layer, backend(conv2d=marked))
    assert torch.equal(routed(image), layer(image) + 1000)


def test_functional_calls_are_caught_as_modules_are() -> None:
    seen: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        def op(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return getattr(F, name)(*args, **kwargs)

        return op

    model = Functional()
    image = torch.randn(1, 1, 12, 12)
    names = ("conv2d", "max_pool2d", "avg_pool2d")
    routed = use_backend(model, backend(**{name: noting(name) for name in names}))
    assert torch.equal(routed(image), model(image))
    assert seen == ["conv2d"] * 2 + ["max_pool2d"] * 3 + ["avg_pool2d"]
    assert routed.served == "conv2d 2/2, max_pool2d 3/3, avg_pool2d 1/1"


def test_what_the_backend_has_not_or_refuses_falls_back_and_is_counted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2), nn.MaxPool2d(2))
    image = torch.randn(2, 1, 9, 9)
    routed = use_backend(model, backend(conv2d=only_stride_1))
    routed(image)

    first = 2 * (2 * 4 * 9 * 9) * (1 * 9)  # two per multiply-add, output elements, terms of each
    second = 2 * (2 * 8 * 4 * 4) * (4 * 9)
    pooled = (2 * 8 * 2 * 2) * 4
    assert (routed.calls, routed.served_calls) == (3, 1)
    assert routed.served == "conv2d 1/2, max_pool2d 0/1"
    assert routed.served_flops_fraction == first / (first + second + pooled)
    assert routed.refusals == ["conv2d: only stride 1"]


def test_counts_add_up_over_passes_until_they_are_reset() -> None:
    routed = use_backend(nn.Conv2d(1, 1, 3), backend(conv2d=only_stride_1))
    for _ in range(3):
        routed(torch.randn(1, 1, 4, 4))
    assert (routed.calls, routed.served_calls, routed.served_flops_fraction) == (3, 3, 1.0)
    routed.reset_counts()
    assert (routed.calls, routed.served_calls, routed.served_flops_fraction) == (0, 0, None)


def test_the_backward_pass_is_no_call_of_its_own() -> None:
    routed = use_backend(nn.Conv2d(1, 1, 3), "im2col")
    routed(torch.randn(1, 1, 4, 4)).sum().backward()
    assert routed.calls == 1


def test_an_error_of_the_backend_is_not_papered_over() -> None:
    def raises(*args: Any) -> Tensor:
        raise RuntimeError("a fault of the backend")

    with pytest.raises(RuntimeError, match="a fault of the backend"):
        use_backend(nn.Conv2d(1, 1, 1), backend(conv2d=raises))(torch.ones(1, 1, 1, 1))


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.randn(1, 1, 6, 6)
    plain = model(image)
    routed = use_backend(model, backend(conv2d=marked))
    assert not torch.equal(routed(image), plain)

    assert routed.model is model
    assert torch.equal(model(image), plain)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {id(parameter) for parameter in routed.parameters()} == {id(p) for p in model.parameters()}


def test_weights_can_be_saved_and_loaded() -> None:
    routed, other = (use_backend(nn.Conv2d(1, 2, 3), "im2col") for _ in range(2))
    other.load_state_dict(routed.state_dict())
    image = torch.randn(1, 1, 6, 6)
    assert torch.equal(routed(image), other(image))


def test_two_backends_on_one_model() -> None:
    layer = nn.Conv2d(1, 1, 3)
    first, second = use_backend(layer, backend(conv2d=marked)), use_backend(layer, "torch")
    image = torch.randn(1, 1, 5, 5)
    assert torch.equal(first(image), second(image) + 1000)
    assert (first.calls, second.calls) == (1, 1)


def test_a_routed_model_inside_another_keeps_its_backend() -> None:
    inner = use_backend(nn.Conv2d(1, 1, 1, bias=False), backend(conv2d=marked))
    outer = use_backend(nn.Sequential(inner, nn.Conv2d(1, 1, 1)), "torch")
    assert outer(torch.zeros(1, 1, 1, 1)).abs() > 1
    assert (inner.served_calls, outer.served_calls) == (
        1,
        2,
    )  # the inner one's own call is torch's to the outer


def test_nested_modules_train_and_evaluate_through_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Dropout(0.5))
    routed = use_backend(model, "im2col")
    assert not routed.eval().model.training
    routed(torch.randn(2, 1, 5, 5))
    assert routed.train().model.training
    assert routed.served == "conv2d 1/1"


def test_a_copy_counts_for_itself() -> None:
    routed = use_backend(nn.Conv2d(1, 1, 3), "im2col").eval()
    copy = deepcopy(routed)
    copy(torch.randn(1, 1, 5, 5))
    assert (routed.calls, copy.calls, copy.training) == (0, 1, False)
    assert copy.get_parameter("model.weight") is not routed.get_parameter("model.weight")


def replica_of(model: nn.Module) -> nn.Module:
    """What `nn.DataParallel` runs on a further device: shallow copies of all modules, with other tensors."""
    replica: Any = model._replicate_for_data_parallel()  # type: ignore[operator]
    for name, child in model.named_children():
        setattr(replica, name, replica_of(child))
    for name, parameter in model._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.detach() * 2)
    return replica  # type: ignore[no-any-return]


@pytest.mark.parametrize("fuse", [False, True])
def test_replicas_of_data_parallel_are_routed(fuse: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.ReLU())
    fused = {"conv2d_activation": lambda *args: marked(*args[:-1]).relu()} if fuse else {}
    routed = use_backend(model, backend(conv2d=marked, **fused), fuse=fuse)
    image = torch.rand(1, 1, 5, 5)
    replica = replica_of(routed)
    torch.testing.assert_close(
        replica(image), (F.conv2d(image, 2 * routed.get_parameter("model.0.weight")) + 1000).relu()
    )
    assert routed.served_calls == routed.calls == 1
    assert "forward" not in vars(model)
    assert routed(image).min() > 900


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_every_padding_mode_of_a_layer(padding_mode: str) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=padding_mode)
    image = torch.randn(2, 2, 6, 6)
    routed = use_backend(layer, "im2col")
    torch.testing.assert_close(routed(image), layer(image))
    assert routed.served == "conv2d 1/1"


def test_a_single_image_falls_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.MaxPool2d(2, 1))
    image = torch.randn(1, 7, 7)
    routed = use_backend(model, "im2col")
    assert torch.equal(routed(image), model(image))
    assert routed.served == "conv2d 0/1, max_pool2d 0/1, avg_pool2d 0/1"


def test_pooling_that_returns_indices_is_torchs() -> None:
    model = nn.MaxPool2d(2, return_indices=True)
    image = torch.randn(1, 1, 4, 4)
    routed = use_backend(model, "im2col")
    for ours, theirs in zip(routed(image), model(image), strict=True):
        assert torch.equal(ours, theirs)


def test_a_transposed_convolution_is_not_taken_for_one() -> None:
    layer = nn.ConvTranspose2d(1, 1, 3)
    image = torch.randn(1, 1, 4, 4)
    routed = use_backend(layer, backend(conv2d=marked))
    assert torch.equal(routed(image), layer(image))
    assert (routed.calls, routed.served_flops_fraction) == (0, None)


def test_the_torch_backend_gives_plain_torchs_gradients_to_the_bit() -> None:
    torch.manual_seed(0)
    model = create_model("lenet")
    image, label = torch.randn(8, 1, 28, 28), torch.arange(8)
    gradients = []
    for network in (model, use_backend(model, "torch")):
        network.zero_grad()
        F.cross_entropy(network(image), label).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", [name for name in discover(installed=()).backends if name != "torch"])
def test_every_backend_gives_torchs_gradients_within_rounding(name: str) -> None:
    torch.manual_seed(0)
    model = create_model("lenet").double()
    if "float64" not in discover(installed=()).backend(name).dtypes:
        model = model.float()
    image = torch.randn(4, 1, 28, 28, dtype=next(model.parameters()).dtype)
    model(image).square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    use_backend(model, name)(image).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_wrong_backends_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'im2col'"):
        use_backend(nn.Identity(), "im2co")
    with pytest.raises(PluginError, match="'fake' offers an unknown op 'conv2'; did you mean 'conv2d'"):
        use_backend(nn.Identity(), backend(conv2=marked))
    with pytest.raises(PluginError, match=r"load\(\) must return a mapping"):
        use_backend(nn.Identity(), Backend("list", "", lambda: [marked]))


def test_nothing_is_put_into_a_model_while_it_runs() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.AvgPool2d(2))
    before, seen = {module: set(vars(module)) for module in model.modules()}, []

    def conv2d(*args: Any) -> Tensor:
        seen.append({module: set(vars(module)) for module in model.modules()})
        return F.conv2d(*args)

    routed = use_backend(model, backend(conv2d=conv2d))
    routed(torch.zeros(1, 1, 16, 16))
    assert seen == [before]
    assert routed.served == "conv2d 1/1, max_pool2d 0/1, avg_pool2d 0/1"


def test_after_an_error_torch_computes_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(1, 1))
    for network in (model, nn.Sequential(Functional(), model)):
        with pytest.raises(RuntimeError):
            use_backend(network, backend(conv2d=marked))(torch.zeros(1, 1, 16, 16))
        assert torch.equal(
            F.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)), torch.zeros(1, 1, 1, 1)
        )


def test_a_layer_put_in_later_is_routed_from_the_next_train_on() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    routed = use_backend(model, "im2col")
    model.append(nn.AvgPool2d(2))
    routed.train()
    routed(torch.zeros(1, 1, 16, 16))
    assert routed.served == "conv2d 1/1, avg_pool2d 1/1"


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))  # type: ignore[no-any-return]


class Copying(nn.Module):
    def __init__(self, model: nn.Module, copied: Callable[[Any], Any], whole: bool) -> None:
        super().__init__()
        self.model, self.copied, self.whole = model, [copied], whole

    def forward(self, images: Tensor) -> Any:
        (copied,) = self.copied
        if self.whole:
            self.copied = []  # pickle does not take a lambda
            copy = copied(self)
            self.copied = [copied]
            return copy.model(images)
        return copied(self.model)(images)


CHANGES: dict[str, Callable[[Headed], Any]] = {
    "replaced": lambda model: setattr(model, "head", nn.Conv2d(2, 3, 1)),
    "replaced in a Sequential": lambda model: model.body.__setitem__(2, nn.AvgPool2d(2)),
    "put in": lambda model: model.body.append(nn.AvgPool2d(2)),
    "taken out": lambda model: model.body.__delitem__(1),
    "hook": lambda model: model.body[0].register_forward_hook(lambda layer, args, output: 2 * output),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inner", [False, True])
def test_a_fused_model_may_be_changed(inner: bool, change: str) -> None:
    torch.manual_seed(0)
    model, images = Headed(), torch.randn(2, 1, 16, 16)
    routed = use_backend(model if inner else nn.Sequential(model), "native", fuse=True)
    routed(images)
    CHANGES[change](model)
    torch.testing.assert_close(routed(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copied", [deepcopy, copy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("whole", [False, True])
def test_a_fused_model_may_copy_itself(whole: bool, copied: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model, images = Copying(Headed(), copied, whole), torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(
        use_backend(model, "native", fuse=True)(images), model(images), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("first", [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(1)])
def test_a_layer_that_works_in_place_may_follow_a_pooling(first: nn.Module, pool: Any) -> None:
    """A fused op may keep its output for its gradient, which torch's pooling does not."""
    model = nn.Sequential(first, nn.ReLU(), pool(2), nn.Hardtanh(-0.1, 0.1, inplace=True))
    images = torch.randn(2, 1, 9, 9)
    routed = use_backend(model, "native", fuse=True)
    gradients = [
        torch.autograd.grad(each(images).square().sum(), [*model.parameters()]) for each in (model, routed)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "backend", "words"),
    [
        ("lenet", "torch", "use_backend takes a torch model, not 'lenet'; create_model makes one"),
        (nn.Conv2d(1, 1, 1), torch, "use_backend takes a backend's name or record, not <module 'torch'"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_a_sentence(model: Any, backend: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        use_backend(model, backend)
