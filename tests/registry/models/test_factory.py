"""`create_model` and `list_models`, and the weights a recipe asks for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import Install
from convbench.registry import (
    Architecture,
    Backend,
    Recipe,
    Routed,
    UnknownName,
    UsageError,
    create_model,
    discover,
    list_models,
)


def linear(num_classes: int = 10, in_channels: int = 1, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, 2, 3), nn.Flatten(), nn.Linear(2, num_classes, bias=bias))


LINEAR = Architecture("linear", "for these tests", linear, input_shape=(1, 3, 3))


def test_a_model_by_name() -> None:
    torch.manual_seed(0)
    model = create_model("lenet")
    assert sum(parameter.numel() for parameter in model.parameters()) == 61_706
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_model_on_a_backend() -> None:
    model = create_model("lenet", backend="im2col")
    assert isinstance(model, Routed)
    assert model.backend.name == "im2col"
    model(torch.zeros(2, 1, 28, 28))
    assert model.served == "conv2d 2/2, avg_pool2d 2/2"


def test_records_need_no_registry() -> None:
    model = create_model(LINEAR, Backend("none", "", dict), num_classes=3, in_channels=2, bias=False)
    assert model(torch.zeros(4, 2, 3, 3)).shape == (4, 3)


def test_the_same_seed_gives_the_same_weights_on_every_backend() -> None:
    states = []
    for backend in (None, "torch", "im2col"):
        torch.manual_seed(3)
        model = create_model("lenet", backend=backend)
        states.append((model.model if isinstance(model, Routed) else model).state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def test_xavier_uniform_bounds_the_weights_by_both_fans() -> None:
    torch.manual_seed(0)
    convolution = create_model(LINEAR, in_channels=3).get_submodule("0")
    bound = (6 / (3 * 9 + 2 * 9)) ** 0.5  # Glorot and Bengio (2010), equation 16
    largest = convolution.weight.abs().max().item()
    assert 0.8 * bound < largest <= bound


def test_init_default_keeps_torchs_own_weights() -> None:
    plain = Architecture("plain", "", linear, recipe=Recipe(init="default"))
    torch.manual_seed(0)
    ours = create_model(plain).state_dict()
    torch.manual_seed(0)
    theirs = linear().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown init 'xavier'; did you mean 'xavier_uniform'"):
        create_model(Architecture("x", "", linear, recipe=Recipe(init="xavier")))


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="unknown architecture 'lenett'; did you mean 'lenet'"):
        create_model("lenett")
    with pytest.raises(UnknownName, match="unknown backend 'im2co'; did you mean 'im2col'"):
        create_model("lenet", backend="im2co")


def test_an_unknown_option_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="architecture 'linear': got an unexpected keyword argument 'depth'"):
        create_model(LINEAR, depth=5)


def test_a_fault_inside_build_is_not_taken_for_one() -> None:
    def build(num_classes: int, in_channels: int) -> nn.Module:
        raise TypeError("a fault of the plugin")

    with pytest.raises(TypeError, match="a fault of the plugin"):
        create_model(Architecture("faulty", "", build))


def test_list_models(install: Install) -> None:
    install(
        "menagerie",
        """
        from convbench.registry import Architecture, hookimpl

        @hookimpl
        def convbench_architectures():
            return [Architecture(name, "", print) for name in ("zoo34", "zoo18", "mlp")]
        """,
    )
    registry = discover()
    assert list_models("zoo*", registry) == list_models("zoo*") == ["zoo18", "zoo34"]
    assert list_models("mlp", registry) == []  # neither of them goes by that name alone
    assert list_models("mlp*", registry) == ["convbench:mlp", "menagerie:mlp"]
    assert list_models("nothing*", registry) == []
    assert set(list_models()) == set(registry.architectures)
    assert list_models() == sorted(list_models())
