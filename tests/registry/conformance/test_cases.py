"""Cases: generated ones are the same everywhere, small, valid, and varied; curated ones cover the contract."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.registry import OPS, Backend, UnknownName, verify
from convbench.registry.conformance.cases import (
    LAYOUTS,
    Case,
    conformance_cases,
    model_cases,
    refused_calls,
)
from convbench.registry.conformance.random_cases import POSITIONS, PRODUCTS, Draw, generated_cases
from convbench.registry.conformance.verify import check
from convbench.registry.ops.activations import ACTIVATIONS

MANY = 300


pytestmark = pytest.mark.usefixtures("one_thread")


def outputs(case: Case) -> torch.Tensor:
    arguments = case.arguments(torch.float64, torch.device("cpu"), seed=0)
    return OPS[case.op].reference(**arguments)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_torch_takes_each_of_them_and_they_are_small(op: str) -> None:
    for case in generated_cases(op, MANY):
        output = outputs(case)
        assert case.op == op
        assert output.shape[2:].numel() <= POSITIONS
        terms = dict(case.shapes).get("weight", (1, 1, 1))[1:]
        assert output.numel() * torch.Size(terms).numel() <= PRODUCTS
        assert case.special or output.isfinite().all()  # no maximum of padding alone


@pytest.mark.parametrize("op", OPS)
def test_the_same_seed_has_the_same_cases(op: str) -> None:
    assert generated_cases(op, 20, seed=7) == generated_cases(op, 20, seed=7)
    assert generated_cases(op, 40, seed=7)[:20] == generated_cases(op, 20, seed=7)
    assert not set(generated_cases(op, 20, seed=7)) & set(generated_cases(op, 20, seed=8))
    assert len(set(generated_cases(op, MANY))) == MANY
    assert generated_cases(op, 0) == []


SINGLE = [name for name, op in OPS.items() if op.base is None]


def test_they_are_the_same_on_every_machine() -> None:
    """Written down: a failure that somebody reports by its seed can be seen by everybody."""
    text = "\n".join(str(case) for op in SINGLE for case in generated_cases(op, 50, seed=1))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4ba161adcf3a11df"
    script = (
        "from convbench.registry.conformance.random_cases import generated_cases;"
        "print(*generated_cases('conv2d', 3, seed=5), sep='\\n')"
    )
    printed = subprocess.check_output([sys.executable, "-W", "ignore", "-c", script], text=True).splitlines()
    assert printed == [str(case) for case in generated_cases("conv2d", 3, seed=5)]


def sizes(case: Case) -> dict[str, tuple[int, ...]]:
    return dict(case.shapes)


def option(case: Case, name: str) -> object:
    return dict(case.options).get(name)


REACHED: dict[str, Callable[[Case], bool]] = {
    "an empty batch": lambda case: sizes(case)["input"][0] == 0,
    "one pixel": lambda case: sizes(case)["input"][2:] == (1, 1),
    "an odd width": lambda case: sizes(case)["input"][3] % 2 == 1,
    "an infinity": lambda case: case.special,
    "second order": lambda case: case.order == 2,
    "no gradient": lambda case: case.needs == (),
    "a stride of two numbers": lambda case: isinstance(option(case, "stride"), tuple),
    "padding of two numbers": lambda case: isinstance(option(case, "padding"), tuple),
} | {
    f"an incoming gradient that is {layout}": lambda case, layout=layout: case.grad_output_layout == layout  # type: ignore[misc]
    for layout in LAYOUTS
}
REACHED_BY_CONVOLUTIONS: dict[str, Callable[[Case], bool]] = {
    "a kernel larger than the image": lambda case: sizes(case)["weight"][2] > sizes(case)["input"][2],
    "a rectangular kernel": lambda case: sizes(case)["weight"][2] != sizes(case)["weight"][3],
    "1x1": lambda case: sizes(case)["weight"][2:] == (1, 1),
    "padding='same'": lambda case: option(case, "padding") == "same",
    "padding='valid'": lambda case: option(case, "padding") == "valid",
    "a dilation": lambda case: option(case, "dilation") not in (None, 1),
    "no bias": lambda case: "bias" not in sizes(case),
    "depthwise": lambda case: option(case, "groups") == sizes(case)["input"][1] != 1,
    "a channel multiplier": lambda case: (
        option(case, "groups") == sizes(case)["input"][1] != 1
        and sizes(case)["weight"][0] > sizes(case)["input"][1]
    ),
    "gradients of the weight alone": lambda case: case.needs == ("weight",),
    "gradients of the input alone": lambda case: case.needs == ("input",),
    "gradients of the bias alone": lambda case: case.needs == ("bias",),
    "a weight that is a view": lambda case: case.weight_layout in ("strided", "transposed"),
}
REACHED_BY_POOLS: dict[str, Callable[[Case], bool]] = {
    "ceil_mode": lambda case: bool(option(case, "ceil_mode")),
    "a window of two numbers": lambda case: isinstance(option(case, "kernel_size"), tuple),
}


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if not op.chain])
def test_they_reach_everything(op: str) -> None:
    cases = generated_cases(op, MANY)
    wanted = REACHED | (REACHED_BY_CONVOLUTIONS if op.startswith("conv2d") else REACHED_BY_POOLS)
    assert [what for what, reached in wanted.items() if not any(map(reached, cases))] == []
    parameters = set(OPS[op].signature.parameters) - set(OPS[op].tensors)
    assert {name for case in cases for name, _ in case.options} == parameters
    activations = set(ACTIVATIONS) if OPS[op].base else {None}
    assert {option(case, "activation") for case in cases} == activations


def test_chains_reach_everything() -> None:
    cases = generated_cases("sequential", MANY)
    layouts = {what for what in REACHED if "incoming" in what}
    for what in layouts | {"an empty batch", "an infinity", "second order", "no gradient"}:
        assert any(map(REACHED[what], cases)), what
    layers = [layer for case in cases for layer in dict(case.options)["layers"]]
    poolings = {f"conv2d_activation_{name}" for name in ("max_pool2d", "avg_pool2d")}
    assert {name for name, *_ in layers} == {*poolings, "flatten", "linear"}
    assert {layer[-1] for layer in layers if layer[0] == "linear"} == {"none", *ACTIVATIONS}
    assert {layer[5] for layer in layers if layer[0] in poolings} == set(ACTIVATIONS)
    assert {len(dict(case.options)["layers"]) for case in cases} == {1, 2, 3, 4, 5}
    assert {sizes(case)["input"][0] for case in cases} >= {0, 1, 16, 21}


def test_draws_are_even() -> None:
    draw = Draw("x")
    numbers = [draw.between(3, 6) for _ in range(4000)]
    assert set(numbers) == {3, 4, 5, 6}
    assert all(850 < numbers.count(number) < 1150 for number in set(numbers))


def test_an_unknown_op() -> None:
    with pytest.raises(UnknownName, match="unknown op 'conv3d'; did you mean 'conv2d'"):
        generated_cases("conv3d", 1)


# Those of the contract, and of a model


@pytest.mark.parametrize("op", OPS)
def test_torch_itself_refuses_every_refused_call(op: str) -> None:
    for case in refused_calls(op):
        with pytest.raises((RuntimeError, ValueError)):
            OPS[op].reference(**case.arguments(torch.float32, torch.device("cpu"), seed=0))


@pytest.mark.parametrize("op", OPS)
def test_cases_reach_what_the_contract_names(op: str) -> None:
    cases = conformance_cases(op)
    assert len(set(cases)) == len(cases)
    assert {case.layout for case in cases} == set(LAYOUTS) - {"scalar"}
    assert {"contiguous", "channels_last", "strided", "scalar"} <= {case.grad_output_layout for case in cases}
    assert {None, ()} <= {case.needs for case in cases}
    assert {case.order for case in cases} == {1, 2}
    assert any(case.special for case in cases)
    assert any(dict(case.shapes)["input"][0] == 0 for case in cases)  # an empty batch
    options = {name for case in cases for name, _ in case.options}
    parameters = set(OPS[op].signature.parameters)
    assert options == parameters - set(OPS[op].tensors)


def both_two(stride: Any, dilation: Any) -> bool:
    """Whether both are 2 along a row."""
    return all((each[-1] if isinstance(each, (tuple, list)) else each) == 2 for each in (stride, dilation))


def last_column_lost(op: str) -> Callable[..., Tensor]:
    """Right, but for the last column where stride and dilation are 2 together."""

    def wrong(*args: Any, **kwargs: Any) -> Tensor:
        call = OPS[op].bind(args, kwargs)
        output: Tensor = OPS[op].reference(**call)
        if both_two(call["stride"], call["dilation"]):
            output = torch.cat((output[..., :-1], output[..., -1:] * 0), dim=-1)
        return output

    return wrong


@pytest.mark.parametrize("make", [conformance_cases, lambda op: generated_cases(op, 200)])
@pytest.mark.parametrize("op", ["conv2d", "max_pool2d"])
def test_a_stride_and_a_dilation_together_are_asked_for(op: str, make: Callable[[str], list[Case]]) -> None:
    cases = [
        case
        for case in make(op)
        if both_two(dict(case.options).get("stride"), dict(case.options).get("dilation"))
        and dict(case.shapes)["input"][0]
        and case.order == 1  # the planted backend claims no more
    ]
    assert len(cases) >= 4
    paddings = {bool(dict(case.options).get("padding")) for case in cases}
    assert paddings == {False, True}
    planted = Backend("planted", "", load=lambda: {op: last_column_lost(op)})
    results = [check(planted, OPS[op], case, "float32", "cpu") for case in cases]
    assert {result.state for result in results} == {"failed"}, [each.message for each in results]


def test_the_cases_of_a_model_are_its_calls() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2)
    )
    cases = model_cases(model, torch.zeros(4, 1, 9, 9))
    assert [case.op for case in cases] == ["conv2d", "conv2d", "max_pool2d"]  # equal calls count once
    assert dict(cases[0].shapes) == {"input": (4, 1, 9, 9), "weight": (2, 1, 3, 3), "bias": (2,)}
    assert dict(cases[0].options)["stride"] == (2, 2)
    report = verify("torch", cases={"conv2d": cases[:2]})
    assert report.passed
