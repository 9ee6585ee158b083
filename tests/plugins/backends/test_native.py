"""`native`: right on every instruction set, ops of torch in every way torch asks, and plain about being absent."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import exhaustive
from convbench.plugins.backends.native import library
from convbench.registry import Backend, Unsupported, discover
from convbench.registry.conformance.cases import (
    Case,
    chain,
    conv2d,
    fused,
    has_output,
    output_shape,
    pool,
    stage,
)
from convbench.registry.conformance.verify import check
from convbench.registry.ops.contract import OPS as CONTRACT
from pooled_as_torch import chooses_as_torch

BACKEND: Backend = discover().backend("native")
pytestmark = pytest.mark.skipif(
    BACKEND.unavailable() is not None, reason=f"native is unavailable: {BACKEND.unavailable()}"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small cases: where something else is running, two threads wait long for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = library.instruction_set()
    try:
        library.use_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    library.use_instruction_set(best)


def random_cases(count: int, seed: int, most_images: int = 3) -> Iterator[Case]:
    """Calls of every size that blocks, bands and vectors can break on."""
    draw = random.Random(seed)
    while count:
        groups = draw.choice((1, 1, 1, 2, 3))
        channels, filters = (
            groups * draw.randint(1, 9),
            groups * draw.choice((1, 2, 5, 6, 7, 13, 16, 17, 33, 40)),
        )
        kernel = draw.randint(1, 7), draw.randint(1, 7)
        stride, dilation = (draw.randint(1, 3), draw.randint(1, 3)), (draw.randint(1, 2), draw.randint(1, 2))
        padding = draw.randint(0, 4), draw.randint(0, 4)
        size = draw.randint(1, 40), draw.choice((1, 3, 7, 8, 14, 15, 16, 17, 31, 40))
        fits = [s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)]
        if all(fits):
            count -= 1
            shapes = (draw.randint(1, most_images), channels, *size), (filters, channels // groups, *kernel)
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            yield conv2d(*shapes, bias=draw.random() < 0.5, **options)


@pytest.mark.parametrize("cases", [10, exhaustive(60)])
def test_random_geometries_on_every_instruction_set(cases: int, instruction_set: str) -> None:
    for case in random_cases(cases, seed=5):
        for dtype in BACKEND.dtypes:
            outcome = check(BACKEND, CONTRACT["conv2d"], case, dtype, "cpu")
            assert outcome.state == "passed", f"{case}: {outcome.message}"


@pytest.mark.parametrize("cases", [10, exhaustive(60)])
def test_random_batches_on_every_instruction_set(cases: int, instruction_set: str) -> None:
    """Batches that have an image for every lane, and some images more."""
    for case in random_cases(cases, seed=11, most_images=40):
        for dtype in BACKEND.dtypes:
            outcome = check(BACKEND, CONTRACT["conv2d"], case, dtype, "cpu")
            assert outcome.state == "passed", f"{case}: {outcome.message}"


def test_random_geometries_with_an_activation_on_every_instruction_set(instruction_set: str) -> None:
    activations = itertools.cycle(("relu", "sigmoid", "tanh"))
    for like, activation in zip(random_cases(12, seed=9, most_images=20), activations, strict=False):
        case = fused("conv2d_activation", like, activation)
        for dtype in BACKEND.dtypes:
            outcome = check(BACKEND, CONTRACT[case.op], case, dtype, "cpu")
            assert outcome.state == "passed", f"{case}: {outcome.message}"


def test_one_channel_by_itself_on_every_instruction_set(instruction_set: str) -> None:
    """Where rows of the output stand in for filters: whole blocks, rests, gaps, and kernels too high for it."""
    for rows, columns, kernel, stride in (
        (28, 28, 3, 1),
        (23, 40, 5, 1),
        (9, 7, 4, 2),
        (31, 33, 7, 3),
        (20, 17, 9, 1),
    ):
        one = conv2d((2, 1, rows, columns), (3, 1, kernel, kernel), stride=stride, padding=kernel // 2)
        depthwise = conv2d((2, 3, rows, columns), (3, 1, kernel, kernel), padding=1, groups=3)
        for case in (one, depthwise):
            for dtype in BACKEND.dtypes:
                outcome = check(BACKEND, CONTRACT["conv2d"], case, dtype, "cpu")
                assert outcome.state == "passed", f"{case}: {outcome.message}"


@pytest.mark.parametrize("cases", [15, exhaustive(60)])
@pytest.mark.parametrize("pooling", ["max_pool2d", "avg_pool2d"])
def test_random_stages_on_every_instruction_set(pooling: str, cases: int, instruction_set: str) -> None:
    """Batches that fill the lanes, windows that share pixels, groups, and what is left to the layers."""
    draw, name = random.Random(3), f"conv2d_activation_{pooling}"
    served = 0
    for like in random_cases(cases, seed=13, most_images=40):
        window = draw.choice((1, 2, 2, 3, (1, 2)))
        like = replace(like, options=tuple(each for each in like.options if each[0] != "stride"))
        case = stage(name, like, draw.choice(("relu", "sigmoid", "tanh")), window, draw.choice((None, 1)))
        if not has_output(case):
            continue
        for dtype in BACKEND.dtypes:
            outcome = check(BACKEND, CONTRACT[name], case, dtype, "cpu")
            assert outcome.state in ("passed", "unsupported"), f"{case}: {outcome.message}"
            served += outcome.state == "passed"
    assert served >= 8


def test_a_stage_of_lenet_is_served() -> None:
    images = torch.randn(32, 1, 28, 28)
    kernels = torch.randn(6, 1, 5, 5, requires_grad=True)
    arguments = images, kernels, None, 1, 2, 1, 1, "sigmoid", 2
    answer = BACKEND.ops["conv2d_activation_avg_pool2d"](*arguments)
    right = CONTRACT["conv2d_activation_avg_pool2d"].reference(*arguments)
    torch.testing.assert_close(answer, right)
    weights = torch.randn_like(right)
    first, second = (torch.autograd.grad(each, kernels, weights)[0] for each in (answer, right))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-3)


def random_networks(count: int, seed: int) -> Iterator[Case]:
    """Up to three stages and three linear layers, of batches that fill the lanes and of some that do not."""
    draw, activations = random.Random(seed), ("relu", "sigmoid", "tanh")
    while count:
        images = draw.choice((3, 7, 10, 15, 16, 17, 31, 40))
        start = channels, height, width = draw.randint(1, 4), draw.randint(6, 22), draw.randint(6, 22)
        layers: list[Any] = []
        for _ in range(draw.randint(1, 3)):
            groups = draw.choice((1, 1, 1, channels))
            filters = groups * draw.randint(1, 7)
            kernel = draw.randint(1, min(5, height)), draw.randint(1, min(5, width))
            options = 1, draw.choice((0, 0, 1, 2, (1, 2))), draw.choice((1, 1, 1, 2)), groups
            window = draw.choice(((2, None), (2, 2), (1, None), (3, 1), ((1, 2), None)))
            name = f"conv2d_activation_{draw.choice(('max_pool2d', 'avg_pool2d'))}"
            layer = (
                (filters, channels // groups, *kernel),
                (name, *options, draw.choice(activations), *window),
            )
            shape = output_shape(chain((images, *start), *layers, layer))
            if shape is not None:
                layers.append(layer)
                _, channels, height, width = shape
        if not layers:
            continue
        features = channels * height * width
        linear = draw.randint(0, 3)
        layers += [(None, ("flatten",))] * bool(linear)
        for _ in range(linear):
            outputs = draw.choice((1, 2, 5, 10, 17, 33, 84))
            layers.append(((outputs, features), ("linear", draw.choice(("none", *activations)))))
            features = outputs
        count -= 1
        yield chain((images, *start), *layers, bias=draw.random() < 0.7)


@pytest.mark.parametrize("cases", [6, exhaustive(60)])
@pytest.mark.parametrize("threads", [1, 2])
def test_random_networks_on_every_instruction_set(cases: int, threads: int, instruction_set: str) -> None:
    torch.set_num_threads(threads)
    served = 0
    for case in random_networks(cases, seed=17 + threads):
        for dtype in BACKEND.dtypes:
            outcome = check(BACKEND, CONTRACT["sequential"], case, dtype, "cpu")
            assert outcome.state in ("passed", "unsupported"), f"{case}: {outcome.message}"
            served += outcome.state == "passed"
    assert served > cases / 2


LENET = chain(
    (32, 1, 28, 28),
    ((6, 1, 5, 5), ("conv2d_activation_avg_pool2d", 1, 2, 1, 1, "sigmoid", 2)),
    ((16, 6, 5, 5), ("conv2d_activation_avg_pool2d", 1, 0, 1, 1, "sigmoid", 2)),
    (None, ("flatten",)),
    ((120, 400), ("linear", "sigmoid")),
    ((84, 120), ("linear", "sigmoid")),
    ((10, 84), ("linear", "none")),
)


def test_all_of_lenet_is_one_node() -> None:
    arguments = LENET.arguments(torch.float64, torch.device("cpu"), seed=0)
    tensors = [each.requires_grad_() for each in arguments.values() if isinstance(each, Tensor)]
    torch.set_num_threads(2)
    answers = []
    for _ in range(3):
        output = BACKEND.ops["sequential"](**arguments)
        assert {each[0] for each in output.grad_fn.next_functions if each[0]} <= {
            torch.autograd.graph.get_gradient_edge(each).node for each in tensors
        }
        answers.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    right = CONTRACT["sequential"].reference(**arguments)
    for found in zip(*answers, (right, *torch.autograd.grad(right.square().sum(), tensors)), strict=True):
        torch.testing.assert_close(found[0], found[-1])
        assert torch.equal(found[0], found[1])  # nothing is left to chance
        assert torch.equal(found[0], found[2])


def test_gradients_of_gradients_of_a_network_and_its_compiled_form() -> None:
    case = replace(LENET, shapes=(("input", (16, 1, 28, 28)), *LENET.shapes[1:]))
    arguments = case.arguments(torch.float64, torch.device("cpu"), seed=0)
    weight = arguments["weight1"].requires_grad_()

    def second(op: Any) -> Tensor:
        (first,) = torch.autograd.grad(op(**arguments).square().sum(), weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    torch.testing.assert_close(second(BACKEND.ops["sequential"]), second(CONTRACT["sequential"].reference))
    compiled = torch.compile(BACKEND.ops["sequential"], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**arguments), CONTRACT["sequential"].reference(**arguments))


def test_lanes_without_an_image_hand_nothing_on() -> None:
    """What a network makes of nothing may be infinite, where what it makes of images is not."""
    stages = [("conv2d_activation_avg_pool2d", 1, 0, 1, 1, "relu", 1)] * 3
    given = [torch.full((1, 1, 1, 1), each, requires_grad=True) for each in (-1e38, 1e5, 1.0)]
    bias = torch.tensor([1e38])
    arguments = torch.ones(11, 1, 2, 2), given[0], bias, given[1], None, given[2], None
    output = BACKEND.ops["sequential"](*arguments, layers=tuple(stages))
    assert torch.equal(output, torch.zeros(11, 1, 2, 2))
    for gradient in torch.autograd.grad(output.sum(), given):
        assert torch.equal(gradient, torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_activations_at_both_ends(activation: str, instruction_set: str) -> None:
    """Where exponentials overflow, where they vanish, at zero, and where there is no number."""
    ends = [0.0, -0.0, 1e-30, 0.6, 0.63, 20.0, 88.0, 90.0, 200.0, 708.0, 710.0, 1e30, math.inf, math.nan]
    for dtype in (torch.float32, torch.float64):
        images = torch.tensor([*ends, *(-value for value in ends)], dtype=dtype).reshape(1, 1, 1, -1)
        images.requires_grad_()
        right = getattr(torch, activation)(images)
        for op in ("activation_max_pool2d", "activation_avg_pool2d"):
            answer = BACKEND.ops[op](images, 1, activation=activation)
            torch.testing.assert_close(answer, right, equal_nan=True)
            slopes = [
                torch.autograd.grad(each.sum(), images, retain_graph=True)[0] for each in (answer, right)
            ]
            torch.testing.assert_close(*slopes, equal_nan=True)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_random_pools_on_every_instruction_set(op: str, instruction_set: str) -> None:
    draw = random.Random(7)
    for _ in range(20):
        kernel = draw.randint(1, 5), draw.randint(1, 5)
        padding = draw.randint(0, kernel[0] // 2), draw.randint(0, kernel[1] // 2)
        options: dict[str, Any] = {
            "kernel_size": kernel,
            "stride": draw.choice((1, 2, 3, (2, 1))),
            "padding": padding,
        }
        shape = draw.randint(1, 3), draw.randint(1, 5), draw.randint(5, 40), draw.randint(5, 40)
        for dtype in BACKEND.dtypes:
            single = pool(op, shape, **options, ceil_mode=draw.random() < 0.5)
            activation = draw.choice(("relu", "sigmoid", "tanh"))
            for case in (single, fused(f"activation_{op}", single, activation)):
                outcome = check(BACKEND, CONTRACT[case.op], case, dtype, "cpu")
                assert outcome.state == "passed", f"{case}: {outcome.message}"


@pytest.mark.parametrize(
    "case",
    [
        conv2d((2, 20, 70, 90), (36, 20, 3, 3), padding=1),  # bands of rows
        conv2d((1, 1, 200, 300), (3, 1, 5, 5), padding=2),  # one image for two threads
        conv2d((3, 200, 4, 4), (100, 200, 3, 3), padding=1),  # many taps, few positions
        conv2d((2, 4, 3, 2000), (4, 4, 1, 1)),  # a row longer than a stripe
    ],
    ids=str,
)
def test_sizes_beyond_one_task(case: Case) -> None:
    torch.set_num_threads(2)
    outcome = check(BACKEND, CONTRACT["conv2d"], case, "float32", "cpu")
    assert outcome.state == "passed", outcome.message


def calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of every op of the library."""
    images, kernels, bias = (torch.randn(shape) for shape in ((2, 4, 9, 7), (6, 2, 3, 3), (6,)))
    options = (2, 1), (1, 1, 2, 1), (1, 1), 2
    upstream = torch.randn(2, 6, 5, 7)
    window = (3, 2), (2, 2), (1, 0)
    pooled, choices = torch.ops.convbench_native.max_pool2d(images, (5, 3), *window, (1, 1))
    return {
        "conv2d": (images, kernels, bias, *options),
        "conv2d_input_gradient": (upstream, kernels, (9, 7), False, *options),
        "conv2d_weight_gradient": (upstream, images, (3, 3), True, False, *options),
        "max_pool2d": (images, (5, 3), *window, (1, 1)),
        "max_pool2d_gradient": (pooled, choices, (9, 7), False, *window, (1, 1)),
        "avg_pool2d": (images, (5, 3), *window, True, 0),
        "avg_pool2d_gradient": (pooled, (9, 7), False, *window, True, 0),
    }


OPS_OF_LIBRARY = (
    "conv2d",
    "conv2d_input_gradient",
    "conv2d_weight_gradient",
    "max_pool2d",
    "max_pool2d_gradient",
    "avg_pool2d",
    "avg_pool2d_gradient",
)


@pytest.mark.parametrize("name", OPS_OF_LIBRARY)
def test_opcheck_finds_nothing(name: str) -> None:
    BACKEND.ops  # noqa: B018 - registers them
    arguments = [
        value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in calls()[name]
    ]
    torch.library.opcheck(getattr(torch.ops.convbench_native, name).default, tuple(arguments))


def network(images: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    features = BACKEND.ops["conv2d"](images, kernels, bias, stride=1, padding="same")
    features = BACKEND.ops["max_pool2d"](features.relu(), 2)
    return BACKEND.ops["avg_pool2d"](features, 3, 2, 1).square().sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiler_takes_it_whole(dynamic: bool) -> None:
    """Without its code generator, which takes long and has nothing to do with these ops."""
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3):
        leaves = [torch.randn(shape, requires_grad=True) for shape in ((batch, 3, 9, 8), (4, 3, 3, 3), (4,))]
        wanted = torch.autograd.grad(network(*leaves), leaves)
        for got, want in zip(torch.autograd.grad(compiled(*leaves), leaves), wanted, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_gradients(groups: int) -> None:
    shapes = (2, 2, 5, 4), (2, 2 // groups, 3, 2), (2,)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    options = {"stride": (2, 1), "padding": 1, "groups": groups}
    assert torch.autograd.gradgradcheck(lambda *given: BACKEND.ops["conv2d"](*given, **options), leaves)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_gradients_of_gradients_of_pools(op: str) -> None:
    images = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda given: BACKEND.ops[op](given, 3, 2, 1), images)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_gradients_of_gradients_of_fused_ops(activation: str) -> None:
    shapes = (2, 2, 5, 4), (2, 2, 3, 2), (2,)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    options = {"padding": 1, "activation": activation}
    convolution = BACKEND.ops["conv2d_activation"]
    assert torch.autograd.gradgradcheck(lambda *given: convolution(*given, **options), leaves)
    images = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    for pooling in (BACKEND.ops["activation_max_pool2d"], BACKEND.ops["activation_avg_pool2d"]):
        call = partial(pooling, kernel_size=3, stride=2, padding=1, activation=activation)
        assert torch.autograd.gradgradcheck(call, images)


def test_threads_change_no_bit_of_output_and_input_gradient() -> None:
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((9, 3, 20, 20), (8, 3, 3, 3))]
    answers = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output = BACKEND.ops["conv2d"](*leaves, padding=1)
        answers.append((output, torch.autograd.grad(output.sum(), leaves)[0]))
    for output, gradient in answers[1:]:
        assert torch.equal(output, answers[0][0])
        assert torch.equal(gradient, answers[0][1])


def test_two_callers_at_once() -> None:
    """The kernels run without Python's lock, and the memory that is kept between calls serves one of them."""
    torch.set_num_threads(2)
    images, kernels = torch.randn(16, 3, 24, 24), torch.randn(5, 3, 3, 3)
    wanted = BACKEND.ops["conv2d"](images, kernels)
    with ThreadPoolExecutor(4) as callers:
        for answer in callers.map(lambda _: BACKEND.ops["conv2d"](images, kernels), range(20)):
            assert torch.equal(answer, wanted)


@pytest.mark.parametrize(
    "options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str
)
def test_equals_and_nan_and_infinity_as_torch_has_them(options: dict[str, Any]) -> None:
    images = torch.randn(3, 3, 34, 34).relu()  # ties of zeros
    chooses_as_torch(BACKEND, images, options)


def test_what_it_does_not_do_it_declines() -> None:
    for images in (torch.randn(1, 1, 4, 4).half(), torch.randn(1, 1, 4, 4, device="meta")):
        with pytest.raises(Unsupported):
            BACKEND.ops["conv2d"](images, images)
        for op in ("max_pool2d", "avg_pool2d"):
            with pytest.raises(Unsupported):
                BACKEND.ops[op](images, 2)
    with pytest.raises(Unsupported, match="65536"):
        BACKEND.ops["max_pool2d"](torch.randn(1, 1, 300, 300), 300)


def test_tensors_in_two_places_are_refused() -> None:
    with pytest.raises(ValueError, match="meta"):
        BACKEND.ops["conv2d"](torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3, device="meta"))


@pytest.fixture
def asked_anew() -> Iterator[None]:
    library.unavailable.cache_clear()
    yield
    library.unavailable.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_a_missing_library_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "nothing.so")
    reason = BACKEND.unavailable()
    assert reason == f"its library was not built; {library.HINT}"


@pytest.mark.usefixtures("asked_anew")
def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "digest", lambda: "0123456789abcdef")
    assert "other sources" in (BACKEND.unavailable() or "")
