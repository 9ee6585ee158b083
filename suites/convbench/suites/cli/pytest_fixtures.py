"""For benchmarks of pytest-benchmark: fixtures that time an op or a training step on every registered backend.

    def test_second_convolution(time_op):
        time_op("conv2d", {"input": (128, 6, 14, 14), "weight": (16, 6, 5, 5)})

    def test_lenet(time_step):
        time_step("lenet", batch_size=128)

One test for every backend and device, in a group for each op call or network. What is timed is named in
`extra_info` by the columns of results.csv, so that `convbench compare` sets it against a run, or another file
of pytest-benchmark. pytest imports this module wherever convbench is installed; so that this costs nothing, what
is heavy is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from convbench.registry import Backend
    from convbench.registry.conformance.cases import Case
    from convbench.suites.measure.data import Batches

BACKEND = "convbench_backend"
BATCHES = 4  # of random images, which steps take in turn


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every backend and device, skipped with its reason where the backend cannot run."""
    if BACKEND in metafunc.fixturenames:
        metafunc.parametrize(BACKEND, list(_backends(metafunc.config)), indirect=True)


@pytest.fixture
def convbench_backend(request: pytest.FixtureRequest) -> tuple[Backend, str]:
    """A registered backend, and the torch device it is to run on."""
    found: tuple[Backend, str] = request.param
    return found


@pytest.fixture
def time_op(convbench_backend: tuple[Backend, str], benchmark: Any) -> Callable[..., Any]:
    """Time one op call, forward and backward, under pytest-benchmark: see `time`."""
    backend, device = convbench_backend

    def time(
        op: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: str = "float32",
        seed: int = 0,
        **options: Any,
    ) -> Any:
        """Hold the call against the reference, then time it.

        Args:
            op: its name in the contract.
            shapes: of its tensors, by name, such as `input` and `weight`.
            dtype: of its tensors.
            seed: of their random numbers.
            options: the other arguments of the call.

        Returns:
            what the op returned last.
        """
        import torch

        from convbench.registry import OPS, UnknownName
        from convbench.registry.conformance.cases import Case
        from convbench.registry.ops.dtypes import arithmetic

        if op not in OPS:
            raise UnknownName("op", op, OPS)
        case = Case(op, tuple(shapes.items()), tuple(options.items()))
        if op not in backend.ops:
            pytest.skip(f"backend {backend.name!r} has no {op}")
        _check(backend, device, dtype, {op: [case]}, seed)
        arguments = case.arguments(arithmetic(dtype).tensors, torch.device(device), seed)
        tensors = [value.requires_grad_() for name, value in arguments.items() if name in OPS[op].tensors]
        function = backend.ops[op]
        output = function(**arguments)
        grad_output = torch.randn_like(output)

        def call() -> Any:
            for tensor in tensors:
                tensor.grad = None
            result = function(**arguments)
            result.backward(grad_output)
            _wait(device)
            return result

        flops = OPS[op].flops(output, **OPS[op].bind((), arguments))
        benchmark.group = f"{case} {dtype} {device}"
        benchmark.extra_info.update(
            _named(backend, device, dtype, seed),
            architecture=str(case),
            batch_size=shapes["input"][0] if "input" in shapes else 0,
            op=op,
            flops=flops,
        )
        with arithmetic(dtype).in_force():
            return benchmark(call)

    return time


@pytest.fixture
def time_step(convbench_backend: tuple[Backend, str], benchmark: Any) -> Callable[..., Any]:
    """Time training steps of an architecture under pytest-benchmark: see `time`."""
    backend, device = convbench_backend

    def time(
        architecture: str, *, batch_size: int | None = None, dtype: str = "float32", seed: int = 0
    ) -> None:
        """Hold the backend against the reference on the network's op calls, then time whole training steps.

        Args:
            architecture: as registered. It is trained on its own problem, or on random images.
            batch_size: images per step; the architecture's own when None.
            dtype: of weights and images.
            seed: of the weights and the images.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from convbench.registry import create_model, discover, use_backend
        from convbench.registry.conformance.cases import model_cases
        from convbench.registry.ops.dtypes import arithmetic

        record = discover().architecture(architecture)
        size = batch_size or record.recipe.batch_size
        torch.manual_seed(seed)
        model = create_model(record, in_channels=record.input_shape[0]).to(device, arithmetic(dtype).tensors)
        data = _data(record, model, size, dtype, seed)
        images, _ = data.batch(torch.arange(size, device=device))
        cases: dict[str, list[Case]] = {}
        for case in model_cases(model, images):
            cases.setdefault(case.op, []).append(case)
        _check(backend, device, dtype, cases, seed)
        routed = use_backend(model, backend)
        parameters = list(model.parameters())
        optimizer = (
            torch.optim.SGD(parameters, lr=record.recipe.lr)
            if parameters and data.grad_output is None
            else None
        )
        batches = torch.arange(len(data), device=device).split(size)
        at = 0

        def step() -> None:
            nonlocal at
            inputs, targets = data.batch(batches[at])
            at = (at + 1) % len(batches)
            inputs.grad = None
            for parameter in parameters:
                parameter.grad = None
            data.objective(routed(inputs), targets).backward(data.grad_output)
            if optimizer is not None:
                optimizer.step()
            _wait(device)

        with FlopCounterMode(display=False) as counted:
            step()
        benchmark.group = f"{record.name} b{size} {dtype} {device}"
        benchmark.extra_info.update(
            _named(backend, device, dtype, seed),
            architecture=record.name,
            batch_size=size,
            dataset=record.problem.name if record.problem else "random images",
            flops=counted.get_total_flops(),
            step_flops_per_image=counted.get_total_flops() / size,
            served_flops_fraction=routed.served_flops_fraction,
        )
        with arithmetic(dtype).in_force():
            benchmark(step)

    return time


def _backends(config: pytest.Config) -> Iterator[Any]:
    from convbench.registry import discover
    from convbench.suites.measure.devices import available_devices

    here = available_devices()
    for backend in discover().backends.values():
        for device in config.getoption("convbench_device", default=None) or here:
            if device.partition(":")[0] in backend.devices:
                reason = backend.unavailable()
                if reason is None and device not in here and f"{device}:0" not in here:
                    reason = f"there is no {device} device here"
                marks = [pytest.mark.skip(reason=reason)] if reason else []
                yield pytest.param((backend, device), id=f"{backend.name}-{device}", marks=marks)


def _check(backend: Backend, device: str, dtype: str, cases: Mapping[str, list[Case]], seed: int) -> None:
    """Fail where the backend is wrong, so that no speed of it is published; skip what is unsupported."""
    from convbench.registry.conformance.verify import verify

    if dtype not in backend.dtypes_on(device):
        pytest.skip(f"backend {backend.name!r} takes {', '.join(backend.dtypes_on(device))} on {device}")
    report = verify(backend, device=device, dtypes=[dtype], cases=cases, seed=seed)
    for outcome in report.failures:
        pytest.fail(f"{outcome.state}: {outcome.case}: {outcome.text}", pytrace=False)
    if cases and not report.count("passed"):
        pytest.skip("; ".join(sorted({outcome.message for outcome in report.outcomes})))


def _data(record: Any, model: torch.nn.Module, batch_size: int, dtype: str, seed: int) -> Batches:
    """An architecture's own problem, or random images with random labels."""
    import torch

    from convbench.registry.ops.dtypes import arithmetic
    from convbench.suites.measure.data import image_batches, problem_batches

    if record.problem is not None:
        return problem_batches(
            record.problem, model, batch_size, seed, arithmetic(dtype).tensors, "contiguous"
        )
    random = torch.Generator().manual_seed(seed)
    shape = (batch_size * BATCHES, *record.input_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 10, shape[:1], generator=random)
    device = next(model.parameters()).device
    return image_batches(images, labels, device, arithmetic(dtype).tensors, "contiguous", None)


def _named(backend: Backend, device: str, dtype: str, seed: int) -> dict[str, Any]:
    """The columns of results.csv that describe the backend and the machine."""
    import torch

    from convbench.registry import discover
    from convbench.results.storage.environment import device_name, machine_id

    registry = discover()
    plugin = registry.backends.plugin(backend.name)
    return {
        "backend": backend.name,
        "device": device if device == "cpu" or ":" in device else f"{device}:0",
        "dtype": dtype,
        "memory_format": "contiguous",
        "mode": "eager",
        "seed": seed,
        "threads": torch.get_num_threads(),
        "convbench_version": registry.version,
        "plugin": plugin.distribution,
        "plugin_version": plugin.version,
        "torch_version": torch.__version__,
        "device_name": device_name(device),
        "machine_id": machine_id(),
    }


def _wait(device: str) -> None:
    """Wait until an accelerator has finished."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize(device)
