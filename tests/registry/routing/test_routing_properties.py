"""Random small networks of stock layers: routed, they compute what they compute, and every call is counted."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

from convbench.registry import OPS, Backend, Unsupported, use_backend
from fuzzing import fuzzed

SERVED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
few = st.integers(1, 3)


@st.composite
def layers(draw: DrawFn, channels: int, depth: int = 0) -> tuple[list[nn.Module], int]:
    """Layers that take images of so many channels, of any size, and how many channels they return."""
    found: list[nn.Module] = []
    kinds = [
        "conv",
        "conv",
        "max",
        "mean",
        "relu",
        "tanh",
        "norm",
        "drop",
        "identity",
        *["nested"] * (depth < 2),
    ]
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        size, stride = draw(few), draw(st.sampled_from([1, 2]))
        if kind == "conv":
            groups, filters = draw(st.sampled_from([1, channels])), channels * draw(st.integers(1, 2))
            width = draw(few)
            padding: Any = draw(st.sampled_from([(size // 2, width // 2), *["same"] * (stride == 1)]))
            mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
            found.append(
                nn.Conv2d(
                    channels, filters, (size, width), stride, padding if mode == "zeros" else 1,
                    groups=groups, bias=draw(st.booleans()), padding_mode=mode,
                )
            )  # fmt: skip
            channels = filters
        elif kind in ("max", "mean"):
            pool: Any = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            found.append(pool(size, 1, size // 2, ceil_mode=draw(st.booleans())))
        elif kind == "nested":
            inner, channels = draw(layers(channels, depth + 1))
            found.append(nn.Sequential(*inner))
        else:
            made: dict[str, Any] = {
                "relu": nn.ReLU,
                "tanh": nn.Tanh,
                "drop": nn.Dropout,
                "identity": nn.Identity,
            }
            found.append(nn.BatchNorm2d(channels) if kind == "norm" else made[kind]())
    return found, channels


@st.composite
def networks(draw: DrawFn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 99)))
    channels = draw(few)
    found, _ = draw(layers(channels))
    if not found or draw(st.booleans()):
        found = [*found, nn.ReLU()]
    elif isinstance(found[0], nn.MaxPool2d):
        found = [*found, found[0]]  # a layer that is there twice
    model = nn.Sequential(*found)
    return model.train(draw(st.booleans())), torch.randn(draw(few), channels, draw(st.integers(4, 8)), 6)


def counting(refuses: bool) -> tuple[Backend, list[str]]:
    calls: list[str] = []

    def counted(name: str) -> Any:
        def op(*args: Any, **kwargs: Any) -> Tensor:
            call = OPS[name].bind(args, kwargs)
            if refuses and call["input"].shape[1] % 2:
                raise Unsupported("an odd number of channels")
            calls.append(name)
            return OPS[name].reference(**call)

        return op

    names = ("conv2d", "max_pool2d", "avg_pool2d")
    return Backend("counting", "", lambda: {name: counted(name) for name in names}), calls


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients of a step."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert x.grad is not None
    return [output.detach(), x.grad, *gradients]


@fuzzed(20, 400, network=networks(), refuses=st.booleans())
def test_a_routed_network_computes_the_same_and_counts_its_calls(
    network: tuple[nn.Module, Tensor], refuses: bool
) -> None:
    model, x = network
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    plain = step(model, x)
    model.load_state_dict(kept)
    backend, calls = counting(refuses)
    routed = use_backend(model, backend)
    assert [torch.equal(*pair) for pair in zip(step(routed, x), plain, strict=True)] == [True] * len(plain)
    expected = sum(isinstance(layer, SERVED) for _, layer in model.named_modules(remove_duplicate=False))
    assert sum(tally.calls for tally in routed.tallies.values()) == expected
    assert sum(tally.served_calls for tally in routed.tallies.values()) == len(calls)
    assert len(calls) == expected or refuses
    model.load_state_dict(kept)
    assert [torch.equal(*pair) for pair in zip(step(model, x), plain, strict=True)] == [True] * len(plain)
    assert sum(tally.calls for tally in routed.tallies.values()) == expected, "the plain model is counted too"
