"""The kernels of `cuda` and `cuda_naive` run on the CPU, from the same sources, by the same launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conftest import exhaustive
from convbench.plugins.backends.cuda import launch_config
from convbench.plugins.backends.cuda.compiler import program
from convbench.plugins.backends.cuda.driver import LaunchFailed
from convbench.plugins.backends.cuda.kernel_arguments import Divisor, Shape
from convbench.registry import Backend, Unsupported, discover
from convbench.registry.conformance.cases import Case, conv2d, fused, pool, refused_calls
from convbench.registry.conformance.verify import check, check_refusal
from convbench.registry.integrity.opcheck import check_torch
from convbench.registry.ops.contract import OPS as CONTRACT
from cuda_emulator import COMPILER, Emulator, emulated, namespace

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler: neither c++ nor g++ nor clang++"),
]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 as it is, whatever torch's switch says."""
    monkeypatch.setattr(launch_config, "float32_on_tensor_cores", lambda: False)


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture(scope="module")
def cuda(emulator: Emulator) -> Backend:
    return emulated(emulator, "cuda")


@pytest.fixture(scope="module")
def naive(emulator: Emulator) -> Backend:
    return emulated(emulator, "cuda_naive")


def passes(backend: Backend, case: Case, dtype: str) -> None:
    outcome = check(backend, CONTRACT[case.op], case, dtype, "cpu")
    assert outcome.state == "passed", f"{case}, {dtype}: {outcome.message}"


def kernels_of(emulator: Emulator, backend: Backend, case: Case, dtype: str) -> set[str]:
    """Check a case, and say which kernels computed it."""
    emulator.launched.clear()
    passes(backend, case, dtype)
    return {kernel for _, kernel in emulator.launched}


SMALL = [
    conv2d((2, 3, 13, 11), (4, 3, 3, 3), padding=1),
    conv2d((2, 3, 13, 11), (4, 3, 3, 3), stride=2, padding=(2, 1), grad_output_layout="channels_last"),
    conv2d((2, 3, 13, 11), (4, 3, 3, 2), stride=(3, 2), padding=(2, 1), dilation=(2, 3)),
    conv2d((2, 6, 7, 7), (12, 1, 3, 3), padding=1, groups=6),
    conv2d((2, 6, 7, 9), (4, 3, 3, 3), padding="same", groups=2, bias=False, layout="strided"),
    conv2d((0, 3, 8, 8), (4, 3, 3, 3), padding=1),
    conv2d((2, 3, 9, 8), (4, 3, 3, 3), padding=1, special=True),
    conv2d((2, 4, 7, 6), (4, 2, 3, 3), padding=1, stride=2, groups=2, order=2),
    conv2d((2, 3, 6, 7), (4, 3, 3, 3), padding=1, needs=("weight",)),
    conv2d((1, 2, 2, 3), (1, 2, 2, 3)),
]
POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "order": 2},
    {"kernel_size": (3, 2), "stride": (1, 3), "layout": "channels_last", "special": True},
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_one_thread_per_output(naive: Backend, case: Case) -> None:
    for dtype in naive.dtypes:
        passes(naive, case, dtype)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("name", ["cuda", "naive"])
def test_pooling(request: pytest.FixtureRequest, name: str, op: str) -> None:
    backend: Backend = request.getfixturevalue(name)
    for options in POOLS:
        for dtype in ("float32", "bfloat16"):
            passes(backend, pool(op, (2, 3, 9, 8), **options), dtype)
    if op == "max_pool2d":
        passes(backend, pool(op, (2, 3, 9, 8), kernel_size=2, dilation=3, stride=1), "float32")
    else:
        passes(
            backend,
            pool(op, (2, 3, 9, 8), kernel_size=3, stride=2, padding=1, count_include_pad=False),
            "float32",
        )


DIRECT = {"direct", "direct_weight_gradient", "sum_rows"}
GEMM = {"gemm", "gemm_weight_gradient", "sum_columns"}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_few_channels(emulator: Emulator, cuda: Backend, case: Case) -> None:
    used = kernels_of(emulator, cuda, case, "float32")
    assert used <= DIRECT | ({"sum_columns", "gemm_weight_gradient"} if "order" in str(case) else set())


@pytest.mark.parametrize(
    "case",
    [
        conv2d((3, 1, 28, 28), (6, 1, 5, 5), padding=2),  # LeNet's first
        conv2d((2, 6, 14, 14), (16, 6, 5, 5)),  # and second: blocks smaller than 128 threads
        exhaustive(
            conv2d((2, 1, 30, 29), (9, 1, 7, 7), stride=2, padding=3)
        ),  # ResNet's first: rows of taps in two parts
        exhaustive(conv2d((1, 2, 40, 75), (3, 2, 11, 11), stride=4, padding=2)),  # AlexNet's first
        conv2d((5, 2, 3, 200), (2, 2, 3, 3), padding=1),  # rows of more than one block
        conv2d((1, 40, 9, 9), (3, 40, 3, 3), padding=1),  # more channels than shared memory has room for
        conv2d((2, 3, 90, 33), (3, 3, 3, 3), padding=1, dilation=1),  # columns of more than one block
    ],
    ids=str,
)
def test_few_channels_of_networks(emulator: Emulator, cuda: Backend, case: Case) -> None:
    used = kernels_of(emulator, cuda, case, "float32")
    assert "direct" in used
    assert "gemm" not in used


@pytest.mark.parametrize("dtype", ["bfloat16", exhaustive("float16")])
def test_few_channels_in_half_precision(emulator: Emulator, cuda: Backend, dtype: str) -> None:
    assert kernels_of(emulator, cuda, SMALL[1], dtype) == DIRECT


MANY = [
    conv2d((2, 20, 9, 7), (40, 20, 3, 3), padding=1),
    conv2d((2, 20, 9, 7), (24, 20, 3, 2), stride=(2, 3), padding=(2, 1), dilation=(3, 2)),
    conv2d((3, 40, 7, 6), (80, 20, 1, 1), groups=2, bias=False),
    conv2d((2, 20, 9, 8), (36, 20, 3, 3), padding=1, special=True),
    conv2d((2, 20, 5, 6), (20, 20, 3, 3), stride=2, padding=1, order=2),
    conv2d((1, 70, 4, 4), (20, 70, 3, 3), padding=1, needs=("input", "bias")),
    conv2d((5, 17, 8, 6), (33, 17, 2, 2), layout="channels_last", weight_layout="transposed"),
]


@pytest.mark.parametrize("case", MANY, ids=str)
@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16"), exhaustive("float16")])
def test_implicit_matrix_products(emulator: Emulator, cuda: Backend, dtype: str, case: Case) -> None:
    assert kernels_of(emulator, cuda, case, dtype) <= GEMM


@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16")])
def test_the_largest_blocks(cuda: Backend, emulator: Emulator, dtype: str) -> None:
    passes(cuda, conv2d((3, 20, 12, 13), (130, 20, 3, 3), padding=1), dtype)
    case = conv2d((1, 20, 24, 23), (200, 20, 3, 3), padding=1, needs=("weight",))
    passes(cuda, case, dtype)
    blocks = {dict(made.macros).get("BM") for made, _ in emulator.launched}
    assert 128 in blocks


@pytest.mark.parametrize("case", MANY[:3], ids=str)
def test_tf32_has_the_error_of_its_products(
    monkeypatch: pytest.MonkeyPatch, emulator: Emulator, cuda: Backend, case: Case
) -> None:
    """Right to 11 bits, forward and gradients, and not to more: it was computed as asked."""
    monkeypatch.setattr(launch_config, "float32_on_tensor_cores", lambda: True)
    leaves = case.arguments(torch.float32, torch.device("cpu"), seed=0)
    tensors = [value.requires_grad_() for value in leaves.values() if isinstance(value, torch.Tensor)]
    exact = {
        name: value.double() if isinstance(value, torch.Tensor) else value for name, value in leaves.items()
    }
    emulator.launched.clear()
    output, reference = cuda.ops["conv2d"](**leaves), F.conv2d(**exact)
    upstream = torch.randn(output.shape)
    answers = [output, *torch.autograd.grad(output, tensors, upstream)]
    wanted = [reference, *torch.autograd.grad(reference, tensors, upstream.double())]
    assert {dict(made.macros).get("MATH") for made, _ in emulator.launched} <= {launch_config.TF32, None}
    for answer, want in zip(answers[:3], wanted[:3], strict=True):
        error = float((answer.detach().double() - want.detach()).norm() / want.detach().norm())
        assert 2e-5 < error < 2**-11


def test_torchs_switch_asks_for_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    switch: Any = torch.backends.cudnn
    found = switch.conv.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            switch.conv.fp32_precision = precision
            assert launch_config.float32_on_tensor_cores() == (precision == "tf32")
    finally:
        switch.conv.fp32_precision = found


@pytest.mark.parametrize("activation", launch_config.ACTIVATIONS)
def test_bias_and_activation_are_part_of_the_kernel(emulator: Emulator, activation: str) -> None:
    kernels = launch_config.Convolution(emulator)
    functions: dict[str, Any] = {
        "none": lambda x: x,
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    for channels, filters in ((3, 4), (20, 36)):
        input, weight = torch.randn(2, channels, 6, 7), torch.randn(filters, channels, 3, 3) / channels
        bias = torch.randn(filters)
        shape = Shape(2, channels, (6, 7), filters, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 7))
        answer = kernels.activated(input, weight, bias, shape, activation)
        torch.testing.assert_close(answer, functions[activation](F.conv2d(input, weight, bias, padding=1)))


@pytest.mark.parametrize("activation", ["relu", exhaustive("sigmoid"), exhaustive("tanh")])
@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16")])
def test_an_activation_and_its_slope(cuda: Backend, dtype: str, activation: str) -> None:
    for case in (SMALL[0], SMALL[7], MANY[0]):
        passes(cuda, fused("conv2d_activation", case, activation), dtype)


def test_more_processors_change_no_answer_but_by_rounding(cuda: Backend, emulator: Emulator) -> None:
    """Another machine shares the positions out in another way; each way has one order."""
    images, upstream = torch.randn(6, 3, 14, 14), torch.randn(6, 4, 14, 14)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    answers = []
    try:
        for count in (1, 3, 200):
            emulator.count = count
            output = cuda.ops["conv2d"](images, weight, padding=1)
            answers.append(torch.autograd.grad(output, weight, upstream)[0])
    finally:
        emulator.count = 4
    for answer in answers[1:]:
        # a sum of 1,176 products of unit variance is some 34, and its roundings are 34 times 6e-8 each way
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["cuda", exhaustive("naive")])
def test_torch_takes_it(request: pytest.FixtureRequest, name: str) -> None:
    """`torch.compile` without a break in the graph, and right answers from what it makes of it."""
    backend: Backend = request.getfixturevalue(name)
    for op in backend.ops:
        for outcome in check_torch(backend, op, "float32", "cpu"):
            assert outcome.state == "passed", f"{outcome.case}: {outcome.message}"


def calls(ops: Any) -> dict[str, tuple[Any, ...]]:
    """Arguments of every op that is registered with torch."""
    images, kernels, bias = (torch.randn(shape) for shape in ((2, 4, 9, 7), (6, 2, 3, 3), (6,)))
    options = (2, 1), (1, 1, 2, 1), (1, 1), 2
    upstream = torch.randn(2, 6, 5, 7)
    window = (3, 2), (2, 2), (1, 0)
    pooled, choices = ops.max_pool2d(images, (5, 3), *window, (1, 1))
    return {
        "conv2d": (images, kernels, bias, *options),
        "conv2d_activation": (images, kernels, bias, *options, "tanh"),
        "conv2d_input_gradient": (upstream, kernels, (9, 7), False, *options),
        "conv2d_weight_gradient": (upstream, images, (3, 3), True, False, *options),
        "max_pool2d": (images, (5, 3), *window, (1, 1)),
        "max_pool2d_gradient": (pooled, choices, (9, 7), False, *window, (1, 1)),
        "avg_pool2d": (images, (5, 3), *window, True, 0),
        "avg_pool2d_gradient": (pooled, (9, 7), False, *window, True, 0),
    }


def test_opcheck_finds_nothing(emulator: Emulator, cuda: Backend) -> None:
    ops = getattr(torch.ops, namespace(emulator, "cuda"))
    for name, arguments in calls(ops).items():
        leaves = tuple(
            value.requires_grad_() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for value in arguments
        )
        torch.library.opcheck(getattr(ops, name).default, leaves)


def test_autocast_computes_in_half_precision(cuda: Backend) -> None:
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = cuda.ops["conv2d"](images, weight, padding=1)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_what_torch_refuses_is_refused(cuda: Backend) -> None:
    for op, contract in CONTRACT.items():
        if op in cuda.ops:
            for case in refused_calls(op):
                outcome = check_refusal(cuda, contract, case, "float32", "cpu")
                assert outcome.state == "passed", str(case)


def test_what_it_does_not_do_it_declines(cuda: Backend) -> None:
    for images in (torch.randn(1, 1, 4, 4).double(), torch.randn(1, 1, 4, 4, device="meta")):
        for op, argument in (("conv2d", images), ("max_pool2d", 2), ("avg_pool2d", 2)):
            with pytest.raises(Unsupported):
                cuda.ops[op](images, argument)
    with pytest.raises(Unsupported, match="65536"):
        cuda.ops["max_pool2d"](torch.randn(1, 1, 300, 300), 300)
    with pytest.raises(ValueError, match="meta"):
        cuda.ops["conv2d"](torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3, device="meta"))


def test_division_by_multiplication() -> None:
    """For all that the kernels divide by; checked where a quotient changes, and at both ends."""
    for number in (*range(1, 300), 784, 2**15, 2**20 + 7, 2**30, 2**31 - 1):
        made = Divisor.of(number)
        edges = [0, 1, number - 1, number, 2**31 - 1, (2**31 - 1) // number * number, 12345 * number % 2**31]
        for n in {edge for edge in (*edges, *(edge - 1 for edge in edges)) if 0 <= edge < 2**31}:
            quotient = n if number == 1 else n * made.multiplier >> (32 + made.shift)
            assert quotient == n // number
        assert made.multiplier < 2**32


# --- would the emulator notice? ---------------------------------------------------------------------------------


BARRIER = (
    "        __syncthreads();       // so are everybody's, and the buffer of the step before is done with\n"
)
FAULTS = {
    "a barrier is missing": (BARRIER, ""),
    "copies are not waited for": ("wait_for_copies<1>();", "wait_for_copies<2>();"),
    "a bound is off by one": ("k < terms && gathered < columns", "k < terms - 1 && gathered < columns"),
    "half a warp writes nothing": (
        "if (column >= columns) continue;",
        "if (column >= columns || threadIdx.x % 32 < 16) continue;",
    ),
}


@pytest.mark.parametrize("fault", [next(iter(FAULTS)), *map(exhaustive, list(FAULTS)[1:])])
def test_a_fault_in_a_kernel_shows(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    from convbench.plugins.backends.cuda import compiler

    right, wrong = FAULTS[fault]
    text = compiler._text
    source = text(program("gemm.cu").path)
    assert right in source
    broken = source.replace(right, wrong, 1)
    monkeypatch.setattr(compiler, "_text", lambda path: broken if path.name == "gemm.cu" else text(path))
    backend = emulated(Emulator(), "cuda")
    outcome = check(backend, CONTRACT["conv2d"], MANY[0], "float32", "cpu")
    assert outcome.state == "failed" or "RuntimeError: gemm" in outcome.message, outcome.message


def test_a_launch_error_is_one_of_ours() -> None:
    from convbench.registry import ConvbenchError

    assert issubclass(LaunchFailed, ConvbenchError)


@pytest.mark.parametrize("name", ["cuda", "cuda_naive"])
def test_it_is_loaded_as_often_as_records_are_made(name: str) -> None:
    """torch refuses a second definition of an op."""
    for _ in range(2):
        assert "conv2d" in discover(installed=()).backend(name).ops
