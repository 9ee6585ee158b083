"""`triton`: right under its interpreter, compiled for GPUs that are not here, seen through by `torch.compile`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import exhaustive
from convbench.plugins.backends import triton
from convbench.registry import Backend, discover, no_cuda_device

BACKEND: Backend = discover().backend("triton")
HERE = Path(__file__).parents[2]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
needs_its_compiler = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or triton.interpreted(),
    reason="this process interprets kernels" if triton.interpreted() else "triton is not installed",
)


@needs_triton
@pytest.mark.parametrize(
    "which",
    ["not exhaustive", exhaustive("exhaustive")],
    ids=["once", "rest"],
)
def test_it_is_right_under_the_interpreter(which: str) -> None:
    """In a process of its own: Triton reads whether to interpret when it is imported."""
    tests = str(HERE / "interpreted_triton.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, tests]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# --- whether it is there ----------------------------------------------------------------------------------------


def record(monkeypatch: pytest.MonkeyPatch, interpret: str | None) -> Backend:
    if interpret is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    return discover().backend("triton")


@needs_triton
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "no_cuda_device", lambda: "no CUDA device")
    for interpret in (None, "0"):
        backend = record(monkeypatch, interpret)
        assert backend.devices == ("cuda",)
        assert backend.unavailable() == "no CUDA device"


@needs_triton
def test_where_it_is_interpreted_it_is_there_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = record(monkeypatch, "1")
    assert backend.devices == ("cuda", "cpu")
    assert backend.unavailable() is None


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert record(monkeypatch, "1").unavailable() == "triton is not installed"


def test_the_list_says_why_it_is_not_there() -> None:
    if no_cuda_device() is None:
        pytest.skip("there is a CUDA device")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "convbench.registry", "list", "backends", "--json"]
    listed = json.loads(subprocess.check_output(command, env=environment, text=True))
    (entry,) = [entry for entry in listed if entry["name"] == "triton"]
    assert "no CUDA device" in str(entry) or "triton is not installed" in str(entry)


# --- what is compiled for GPUs ----------------------------------------------------------------------------------

Call = tuple[Callable[..., Any], tuple[Any, ...]]
SPILLED_BYTES = 64  # of a lane, at most; more is a tile that should not be a candidate
ARCHITECTURES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}


def call(name: str) -> Call:
    """A launch at the shape of a layer, on tensors without memory."""
    from convbench.plugins.backends.triton import convolution, pooling

    def empty(shape: tuple[int, ...], dtype: torch.dtype, last: bool = False) -> Tensor:
        memory_format = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)

    half, brain = torch.float16, torch.bfloat16
    same, halved = ((1, 1), (1, 1, 1, 1), (1, 1), 1), ((2, 2), (1, 1, 1, 1), (1, 1), 1)
    block, kernels = (32, 64, 24, 24), (64, 64, 3, 3)
    images = empty(block, brain)
    window = (3, 3), (2, 2), (1, 1)
    calls: dict[str, Call] = {
        "a block, channels last, with bias and relu": (
            convolution.convolution,
            (empty(block, brain, True), empty(kernels, brain, True), empty((64,), brain), *same, "relu"),
        ),
        "a stem of one channel": (
            convolution.convolution,
            (
                empty((32, 1, 96, 96), half),
                empty((64, 1, 7, 7), half),
                None,
                (2, 2),
                (3,) * 4,
                (1, 1),
                1,
                "none",
            ),
        ),
        "the input gradient of a stride": (
            convolution.input_gradient,
            (empty((32, 64, 12, 12), brain), empty(kernels, brain), (24, 24), False, *halved),
        ),
        "a weight gradient": (
            convolution.weight_gradients,
            (empty(block, brain, True), empty(block, brain, True), (3, 3), True, True, *same),
        ),
        "a block in float32": (
            convolution.convolution,
            (empty(block, torch.float32), empty(kernels, torch.float32), None, *same, "none"),
        ),
        "max_pool2d": (pooling.largest, (images, (12, 12), *window, (1, 1), "relu")),
        "its gradient": (
            pooling.largest_gradient,
            (
                empty((32, 64, 12, 12), brain),
                empty((32, 64, 12, 12), torch.int16),
                (24, 24),
                False,
                *window,
                (1, 1),
            ),
        ),
        "avg_pool2d": (pooling.mean, (images, (12, 12), *window, True, 0, "tanh")),
        "gradient of avg_pool2d": (
            pooling.activated_mean_gradient,
            (empty((32, 64, 12, 12), brain), images, *window, False, 0, "sigmoid"),
        ),
    }
    return calls[name]


@needs_its_compiler
@pytest.mark.parametrize("architecture", [exhaustive(80), 90, exhaustive(100)])
@pytest.mark.parametrize(
    "name",
    [
        "a block, channels last, with bias and relu",
        "a stem of one channel",
        "the input gradient of a stride",
        "a weight gradient",
    ],
)
def test_products_compile_for_tensor_cores(
    name: str, architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two candidates of each, the first and the last, and none that spills."""
    from triton_compilation import compiled, launches

    function, given = call(name)
    found = [found for found in launches(monkeypatch, function, *given) if "PRECISION" in found.arguments]
    assert len(found) > 3
    for launch in (found[0], found[-1]):
        kernel = compiled(launch, architecture, tmp_path)
        assert ARCHITECTURES[architecture] in kernel.ptx
        assert kernel.registers <= 255
        assert kernel.spilled_bytes <= SPILLED_BYTES
        assert kernel.shared_bytes <= 99 * 1024
        if name.startswith("a block"):  # whole vectors go to shared memory by themselves
            assert "cp.async" in kernel.ptx


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """What torch is asked for."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = request.param
    yield request.param
    convolutions.fp32_precision = before


@needs_its_compiler
def test_float32_is_rounded_where_torch_is_asked_to(
    precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton_compilation import compiled, launches

    function, given = call("a block in float32")
    launch = next(launches(monkeypatch, function, *given))
    kernel = compiled(launch, 80, tmp_path)
    assert ("mma.sync" in kernel.ptx and "tf32" in kernel.ptx) == (precision == "tf32")
    assert kernel.spilled_bytes <= SPILLED_BYTES


@needs_its_compiler
@pytest.mark.parametrize("name", ["max_pool2d", "its gradient", "avg_pool2d", "gradient of avg_pool2d"])
def test_pools_compile(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton_compilation import compiled, launches

    function, given = call(name)
    kernel = compiled(next(launches(monkeypatch, function, *given)), 90, tmp_path)
    assert kernel.spilled_bytes == 0
    assert kernel.registers <= 128


@needs_its_compiler
def test_small_calls_share_one_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification has hundreds of small shapes, and compiling each would take its time."""
    from convbench.plugins.backends.triton import convolution
    from triton_compilation import launches

    kernels = set()
    for size, taps in ((8, 3), (9, 2), (16, 1)):
        images, weight = (torch.empty(2, 3, size, size), torch.empty(4, 3, taps, taps))
        options = (1, 1), (0, 0, 0, 0), (1, 1), 1, "none"
        (launch,) = launches(monkeypatch, convolution.convolution, images, weight, None, *options)
        assert all(
            parameter.is_constexpr or parameter.do_not_specialize for parameter in launch.kernel.params
        )
        kernels.add((launch.kernel, str(launch.config)))
    assert len(kernels) == 1


# --- tiles ------------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("folds", ["depth", "columns"])
def test_candidates_fit_the_call_and_the_device(dtype: torch.dtype, folds: str) -> None:
    from convbench.plugins.backends.triton.block_sizes import SMALL, Product, candidates

    for rows, columns, depth, taps in (
        (2**17, 6, 1, 25),
        (2**15, 64, 64, 9),
        (64, 32, 2**17, 9),
        (2**14, 256, 512, 1),
    ):
        product = Product(rows, columns, depth, taps, folds, 1)
        assert product.multiplications > SMALL
        for memory in (48 * 1024, 99 * 1024, 227 * 1024):
            tiles = candidates(product, dtype, "ieee", memory)
            assert 1 <= len(tiles) <= 20
            assert len(set(tiles)) == len(tiles)
            for tile in tiles:
                assert tile.shared_memory(dtype.itemsize) <= memory
                assert tile.rows <= max(16, 2 * rows)
                assert min(tile.rows, tile.columns, tile.depth) >= 16
                assert not (tile.folded and taps == 1)
    assert len(candidates(Product(2**10, 4, 4, 9, folds, 1), dtype, "ieee", 99 * 1024)) == 1


@needs_triton
def test_sizes_of_one_order_share_a_tile() -> None:
    from convbench.plugins.backends.triton.block_sizes import size_class

    assert [size_class(extent) for extent in (0, 1, 2, 3, 4, 7, 8, 1023, 1024)] == [
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        10,
        11,
    ]


@pytest.fixture
def a_driver() -> Iterator[None]:
    """One that says it has an H100, and can do nothing."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(Driver())
    yield
    triton.runtime.driver._active = before


@needs_its_compiler
@pytest.mark.usefixtures("a_driver")
def test_what_was_tuned_is_kept_for_other_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With made-up times for the candidates, on a disk of its own; a second tuner stands for a second process."""
    from convbench.plugins.backends.triton.block_sizes import HALF, autotuned
    from convbench.plugins.backends.triton.kernels.correlation import correlation

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tiles, names = HALF[:4], ("BLOCK_P", "BLOCK_O", "BLOCK_K")
    measured: list[Any] = []
    launched: list[dict[str, Any]] = []

    def tuner() -> Any:
        made = autotuned.__wrapped__(correlation, tiles, names)
        monkeypatch.setattr(made.fn, "run", lambda *_, **options: launched.append(options))
        made._bench = lambda *_, config, **__: (
            measured.append(config),
            [1.0 / config.kwargs["BLOCK_P"]] * 3,
        )[1]
        return made

    def run(made: Any, size_class: int) -> None:
        arguments = {name: 1 for name in correlation.arg_names if name not in (*names, "FOLDED", "EVEN")}
        made.run(**(arguments | {"size_class": size_class, "source": torch.empty(1)}), grid=(1,))

    first = tuner()
    run(first, 10)
    run(first, 10)
    assert len(measured) == len(tiles)
    run(first, 11)
    assert len(measured) == 2 * len(tiles)  # another order of magnitude is another problem
    run(tuner(), 10)
    assert len(measured) == 2 * len(tiles)
    fastest = max(tile.rows for tile in tiles)
    assert [options["BLOCK_P"] for options in launched] == [fastest] * 4


# --- compilers --------------------------------------------------------------------------------------------------


def graph(function: Callable[..., Any], *given: Tensor) -> Any:
    """What `torch.compile` hands to a code generator, for tensors on a GPU that need not be there."""
    from torch._dynamo.backends.common import aot_autograd

    seen: list[Any] = []

    def keep(module: Any, _: Any) -> Any:
        seen.append(module)
        return module.forward

    torch.compiler.reset()
    torch.compile(function, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=keep))(*given)
    torch.compiler.reset()
    (module,) = seen
    return module


@needs_its_compiler
@pytest.mark.usefixtures("a_driver")
def test_the_compiler_sees_through_every_op() -> None:
    """Into the launches: which tensors a kernel writes, so that none of the others is copied for it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ops = BACKEND.ops

    def network(images: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
        features = ops["conv2d"](images, kernels, bias, stride=2, padding=1)
        return ops["avg_pool2d"](ops["max_pool2d"](features.relu(), 2), 2).sum()

    def gradients(images: Tensor, kernels: Tensor, upstream: Tensor, choices: Tensor) -> tuple[Tensor, ...]:
        found = torch.ops.convbench_triton
        options = (2, 2), (1, 1, 1, 1), (1, 1), 1
        window = (2, 2), (2, 2), (0, 0)
        return (
            found.conv2d_input_gradient(upstream, kernels, images.shape[2:], False, *options),
            found.conv2d_weight_gradient(upstream, images, kernels.shape[2:], False, False, *options)[0],
            found.max_pool2d_gradient(upstream, choices, (32, 32), False, *window, (1, 1)),
            found.avg_pool2d_gradient(upstream, (32, 32), False, *window, True, 0),
        )

    with FakeTensorMode():
        images, kernels, bias, upstream = (
            torch.empty(shape, dtype=torch.bfloat16, device="cuda")
            for shape in ((64, 16, 32, 32), (32, 16, 3, 3), (32,), (64, 32, 16, 16))
        )
        choices = torch.empty(64, 32, 16, 16, dtype=torch.int16, device="cuda")
        graphs = graph(network, images, kernels, bias), graph(gradients, images, kernels, upstream, choices)
    written = [
        node.kwargs["tensors_to_clone"]
        for module in graphs
        for node in module.graph.nodes
        if "triton_kernel_wrapper" in str(node.target)
    ]
    assert written == [
        ["target"], ["largest", "choices"], ["mean"],
        ["target"], ["parts"], ["total"], ["gradient"], ["gradient"],
    ]  # fmt: skip
    assert not any("convbench_triton" in str(node.target) for module in graphs for node in module.graph.nodes)


@needs_its_compiler
def test_torch_knows_the_kernels_of_every_op() -> None:
    """It compiles anew where their source has changed."""
    known = pytest.importorskip("torch._library.triton").get_triton_kernels_for_op
    BACKEND.ops  # noqa: B018 - registers them
    for op, kernels in {
        "conv2d": {"correlation"},
        "conv2d_activation": {"correlation"},
        "conv2d_input_gradient": {"correlation"},
        "conv2d_weight_gradient": {"weight_gradient", "add_parts"},
        "max_pool2d": {"max_pool"},
        "max_pool2d_gradient": {"max_pool_gradient"},
        "avg_pool2d": {"avg_pool"},
        "avg_pool2d_gradient": {"avg_pool_gradient"},
        "activation_max_pool2d": {"max_pool"},
        "activation_avg_pool2d": {"avg_pool"},
        "activation_avg_pool2d_gradient": {"avg_pool_gradient"},
    }.items():
        assert {kernel.fn.__name__ for kernel in known(f"convbench_triton::{op}")} == kernels


@needs_its_compiler
def test_the_graph_is_for_sizes_of_one_order() -> None:
    """A compiler's symbol for a size is compared, and not asked for its value."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    from convbench.plugins.backends.triton.block_sizes import size_class

    environment = ShapeEnv()
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(shape_env=environment)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    symbolic = mode.from_tensor(torch.empty(100), symbolic_context=context)
    assert size_class(symbolic.shape[0]) == 7
    assert isinstance(symbolic.shape[0], torch.SymInt)
    assert symbolic.shape[0].node.maybe_as_int() is None
