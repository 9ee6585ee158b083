"""Generated cases: the same ones everywhere, small, valid, and from the whole space."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from convbench.registry import OPS, UnknownName
from convbench.registry.conformance.cases import LAYOUTS, Case
from convbench.registry.conformance.random_cases import POSITIONS, PRODUCTS, Draw, generated_cases
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
