"""`triton` on the CPU, by Triton's interpreter: `test_triton.py` runs these tests in a process that interprets.

Shapes are small: a step of a kernel costs milliseconds here. What only repeats on another dtype, activation or
order of the loops what was shown on one is exhaustive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import exhaustive
from convbench.plugins.backends.triton import convolution, pooling
from convbench.plugins.backends.triton.block_sizes import Tile
from convbench.registry import Backend, Unsupported, discover
from convbench.registry.conformance.cases import Case, conv2d, fused, pool
from convbench.registry.conformance.verify import check
from convbench.registry.integrity.opcheck import check_torch
from convbench.registry.ops.contract import OPS as CONTRACT
from pooled_as_torch import chooses_as_torch

BACKEND: Backend = discover().backend("triton")


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conforms(case: Case, dtype: str) -> None:
    outcome = check(BACKEND, CONTRACT[case.op], case, dtype, "cpu")
    assert outcome.state == "passed", f"{outcome.case}: {outcome.message}"


@pytest.mark.parametrize("dtype", BACKEND.dtypes)
@pytest.mark.parametrize(
    "case",
    [
        conv2d((2, 3, 7, 6), (4, 3, 3, 3), padding=1),
        exhaustive(
            conv2d((2, 4, 9, 8), (6, 2, 3, 2), stride=(3, 2), padding=(2, 1), dilation=(2, 3), groups=2)
        ),
    ],
    ids=str,
)
def test_every_dtype(case: Case, dtype: str) -> None:
    conforms(case, dtype)


@pytest.mark.parametrize(
    "case",
    [
        conv2d(
            (2, 2, 8, 7), (3, 2, 3, 3), stride=2, padding=1, dilation=2
        ),  # taps of every second class only
        conv2d((2, 2, 9, 7), (3, 2, 2, 2), stride=3),  # pixels that no window sees
        conv2d((2, 6, 5, 5), (12, 1, 3, 3), padding=1, groups=6, bias=False),  # depthwise
        conv2d((1, 2, 6, 7), (3, 2, 2, 4), padding="same"),  # more padding at the end
        exhaustive(conv2d((2, 4, 7, 7), (8, 4, 1, 1), stride=2)),
        exhaustive(conv2d((1, 33, 3, 4), (35, 33, 2, 2), padding=1)),  # a block of channels and one more
        conv2d((2, 2, 9, 9), (3, 2, 3, 3), stride=(2, 1), layout="channels_last"),
        conv2d((2, 3, 6, 5), (4, 3, 3, 3), padding=1, layout="strided", grad_output_layout="scalar"),
        conv2d((2, 4, 6, 5), (4, 2, 3, 3), groups=2, layout="transposed", weight_layout="channels_last"),
        conv2d((0, 3, 8, 8), (4, 3, 3, 3), padding=1),
        conv2d((1, 1, 1, 1), (2, 1, 3, 3), padding=1),
        conv2d((2, 3, 5, 6), (4, 3, 3, 3), padding=1, special=True),
        exhaustive(conv2d((2, 3, 5, 6), (4, 3, 3, 3), padding=1, needs=())),
        conv2d((2, 3, 5, 6), (4, 3, 3, 3), padding=1, needs=("bias",)),
        exhaustive(conv2d((1, 4, 6, 5), (4, 2, 3, 3), stride=2, padding=1, groups=2, order=2)),
    ],
    ids=str,
)
def test_every_geometry_and_layout(case: Case) -> None:
    conforms(case, "float32")


@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16")])
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1, "layout": "channels_last"},
        {"kernel_size": 3, "stride": 2, "layout": "strided", "grad_output_layout": "scalar"},
        {"kernel_size": 2, "stride": 1, "order": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "special": True},
    ],
    ids=str,
)
def test_pooling(op: str, options: dict[str, Any], dtype: str) -> None:
    conforms(pool(op, (2, 3, 7, 6), **options), dtype)


def test_what_only_one_pooling_has() -> None:
    conforms(pool("max_pool2d", (2, 2, 9, 8), kernel_size=(2, 3), dilation=(3, 1), ceil_mode=True), "float32")
    conforms(pool("avg_pool2d", (2, 2, 7, 7), kernel_size=3, padding=1, count_include_pad=False), "float32")
    conforms(pool("avg_pool2d", (2, 2, 7, 7), kernel_size=3, padding=1, divisor_override=5), "float32")
    conforms(pool("avg_pool2d", (0, 2, 4, 4), kernel_size=2), "float32")


FOLDED = Tile(16, 16, 16, 4, 1, folded=True)
BY_CHANNELS = Tile(32, 16, 16, 4, 1, folded=False)
BY_BLOCKS = Tile(16, 32, 16, 4, 1, folded=False, even=True)


@pytest.mark.parametrize(
    ("tile", "wide", "memory_format"),
    [
        (FOLDED, False, torch.contiguous_format),
        exhaustive(FOLDED, True, torch.channels_last),
        exhaustive(BY_CHANNELS, False, torch.channels_last),
        (BY_CHANNELS, True, torch.contiguous_format),
        exhaustive(BY_BLOCKS, False, torch.contiguous_format),
        (BY_BLOCKS, True, torch.channels_last),
    ],
)
def test_every_walk_of_the_kernels(
    tile: Tile, wide: bool, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks so small that every axis has several."""
    monkeypatch.setattr(convolution, "candidates_on", lambda *_: (tile,))
    monkeypatch.setattr(convolution, "wide", lambda *_: wide)
    channels = 32 if tile.even else 18  # of a group: whole blocks both forward and back, or not
    groups = 2 if tile.folded else 1
    shapes = (2, groups * channels, 4, 5), (groups * channels, channels, 2, 2)
    leaves = [torch.randn(shape).to(memory_format=memory_format).requires_grad_() for shape in shapes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    options = {"stride": (1, 2), "padding": 1, "groups": groups}
    got, want = BACKEND.ops["conv2d"](*leaves, **options), F.conv2d(*exact, **options)  # type: ignore[arg-type]
    upstream = torch.randn_like(got)
    gradients = torch.autograd.grad(got, leaves, upstream)
    wanted = torch.autograd.grad(want, exact, upstream.double())
    for answer, reference in zip((got, *gradients), (want, *wanted), strict=True):
        torch.testing.assert_close(answer, reference.float(), rtol=1e-5, atol=1e-5)


def test_a_weight_gradient_that_is_split_is_the_same_every_time() -> None:
    images, kernels = torch.randn(3, 2, 27, 27), torch.randn(3, 2, 3, 3, requires_grad=True)
    output = BACKEND.ops["conv2d"](images, kernels, padding=1)
    upstream = torch.randn_like(output)
    first, again = (torch.autograd.grad(output, kernels, upstream, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    wanted = torch.nn.grad.conv2d_weight(images, kernels.shape, upstream, padding=1)
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-4)


def test_64_bit_offsets_of_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "wide", lambda *_: True)
    for op in ("max_pool2d", "avg_pool2d"):
        for layout in ("contiguous", "channels_last"):
            conforms(pool(op, (2, 3, 5, 6), kernel_size=3, stride=2, padding=1, layout=layout), "float32")


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        ("relu", "float32"),
        exhaustive("sigmoid", "float32"),
        exhaustive("tanh", "float32"),
        exhaustive("relu", "float16"),
        ("tanh", "bfloat16"),
    ],
)
def test_activations_in_the_same_kernel(activation: str, dtype: str) -> None:
    plain = conv2d((2, 3, 6, 5), (4, 3, 3, 3), stride=2, padding=1)
    pools = [
        pool("max_pool2d", (2, 3, 6, 5), kernel_size=3, stride=2, padding=1),
        pool("avg_pool2d", (2, 3, 6, 5), kernel_size=3, stride=2, padding=1, layout="channels_last"),
    ]
    conforms(fused("conv2d_activation", plain, activation), dtype)
    for like in pools:
        conforms(fused(f"activation_{like.op}", like, activation), dtype)


@pytest.mark.parametrize("activation", ["relu", exhaustive("tanh")])
def test_gradients_of_gradients_of_activations(activation: str) -> None:
    conforms(
        fused("conv2d_activation", conv2d((1, 1, 3, 3), (2, 1, 2, 2), padding=1, order=2), activation),
        "float32",
    )
    for op in ("max_pool2d", "avg_pool2d"):
        conforms(
            fused(f"activation_{op}", pool(op, (1, 2, 5, 4), kernel_size=2, order=2), activation), "float32"
        )


def test_tanh_of_small_numbers_keeps_its_digits() -> None:
    images = torch.logspace(-6, 0.5, 40)[None, None, None, :]
    got = BACKEND.ops["conv2d_activation"](images, torch.ones(1, 1, 1, 1), activation="tanh")
    torch.testing.assert_close(got, images.double().tanh().float(), rtol=5e-7, atol=0)


def test_an_activation_that_there_is_not() -> None:
    for name in ("gelu", "none"):
        with pytest.raises(ValueError, match=f"unknown activation '{name}'"):
            BACKEND.ops["conv2d_activation"](torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), activation=name)


@pytest.mark.parametrize(
    "options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str
)
def test_equals_and_nan_and_infinity_as_torch_has_them(options: dict[str, Any]) -> None:
    images = torch.randn(2, 3, 9, 8).relu()  # ties of zeros
    chooses_as_torch(BACKEND, images, options)


def test_channels_stay_last() -> None:
    images = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    kernels = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    output = BACKEND.ops["conv2d"](images, kernels, padding=1)
    pooled = BACKEND.ops["avg_pool2d"](BACKEND.ops["max_pool2d"](output, 2), 3)
    gradients = torch.autograd.grad(pooled.sum(), (images, kernels))
    for tensor in (output, pooled, *gradients):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", [exhaustive("conv2d"), exhaustive("max_pool2d"), "avg_pool2d"])
def test_a_model_compiles_whole(op: str) -> None:
    outcomes = list(check_torch(BACKEND, op, "float32", "cpu"))
    assert [(outcome.kind, outcome.state) for outcome in outcomes] == [("compile", "passed")], outcomes


def test_a_bias_need_not_be_contiguous() -> None:
    images, weight, bias = torch.randn(1, 1, 3, 3), torch.randn(4, 1, 2, 2), torch.randn(8)[::2]
    for each in (bias, torch.tensor([2.0]).expand(4)):
        got = BACKEND.ops["conv2d"](images, weight, each)
        torch.testing.assert_close(got, torch.conv2d(images, weight, each))


def calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of every op that is registered."""
    images, kernels, bias = (torch.randn(shape) for shape in ((2, 4, 7, 6), (6, 2, 3, 3), (6,)))
    options = (2, 1), (1, 1, 2, 1), (1, 1), 2
    upstream = torch.randn(2, 6, 4, 6)
    window = (3, 2), (2, 2), (1, 0)
    pooled, choices = torch.ops.convbench_triton.max_pool2d(images, (4, 3), *window, (1, 1))
    return {
        "conv2d": (images, kernels, bias, *options),
        "conv2d_activation": (images, kernels, bias, *options, "tanh"),
        "conv2d_input_gradient": (upstream, kernels, (7, 6), True, *options),
        "conv2d_weight_gradient": (upstream, images, (3, 3), True, False, *options),
        "max_pool2d": (images, (4, 3), *window, (1, 1)),
        "activation_max_pool2d": (images, (4, 3), *window, (1, 1), "sigmoid"),
        "max_pool2d_gradient": (pooled, choices, (7, 6), False, *window, (1, 1)),
        "avg_pool2d": (images, (4, 3), *window, True, 0),
        "activation_avg_pool2d": (images, (4, 3), *window, True, 0, "tanh"),
        "avg_pool2d_gradient": (pooled, (7, 6), True, *window, True, 0),
        "activation_avg_pool2d_gradient": (pooled, images, *window, False, 0, "relu"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "conv2d",
        exhaustive("conv2d_activation"),
        exhaustive("conv2d_input_gradient"),
        exhaustive("conv2d_weight_gradient"),
        "max_pool2d",
        "activation_max_pool2d",
        "max_pool2d_gradient",
        "avg_pool2d",
        "activation_avg_pool2d",
        exhaustive("avg_pool2d_gradient"),
        exhaustive("activation_avg_pool2d_gradient"),
    ],
)
def test_opcheck_finds_nothing(name: str) -> None:
    BACKEND.ops  # noqa: B018 - registers them
    arguments = [
        value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in calls()[name]
    ]
    torch.library.opcheck(getattr(torch.ops.convbench_triton, name).default, tuple(arguments))


def test_what_it_does_not_do_it_declines() -> None:
    for images in (torch.randn(1, 1, 4, 4).double(), torch.randn(1, 1, 4, 4, device="meta")):
        with pytest.raises(Unsupported):
            BACKEND.ops["conv2d"](images, images)
        for op in ("max_pool2d", "avg_pool2d"):
            with pytest.raises(Unsupported):
                BACKEND.ops[op](images, 2)
    with pytest.raises(Unsupported, match="32768"):
        BACKEND.ops["max_pool2d"](torch.randn(1, 1, 200, 200), 200)


def test_tensors_in_two_places_are_refused() -> None:
    with pytest.raises(ValueError, match="input is on cpu, but weight on meta"):
        BACKEND.ops["conv2d"](torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3, device="meta"))
