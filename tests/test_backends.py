"""Every registered backend keeps the contract, whoever brings it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from convbench.registry import OPS, Backend, discover, no_cuda_device, verify
from convbench.registry.arithmetic import DTYPES
from convbench.registry.cases import conformance_cases
from convbench.registry.conformance import Report
from convbench.registry.generated_cases import generated_cases

REGISTRY = discover()
BASIC = ["im2col", "loops", "torch"]  # which take every case
RUNNABLE = [name for name, backend in REGISTRY.backends.items() if backend.unavailable() is None]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small cases: handing them to other threads costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def report(name: str, device: str) -> Report:
    """The whole contract in the backend's first dtype."""
    backend = REGISTRY.backend(name)
    return verify(backend, device=device, dtypes=backend.dtypes_on(device)[:1], generated=5)


def failures(report: Report) -> str:
    return "\n".join(f"{outcome.case}: {outcome.message}" for outcome in report.failures)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [name for name in RUNNABLE if "cpu" in REGISTRY.backend(name).devices])
def test_it_conforms_on_the_cpu(name: str) -> None:
    result = report(name, "cpu")
    assert result.passed, failures(result)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [name for name in RUNNABLE if "cpu" in REGISTRY.backend(name).devices])
def test_it_conforms_in_every_dtype(name: str) -> None:
    result = verify(REGISTRY.backend(name))
    assert result.passed, failures(result)
    if name in BASIC:
        assert result.count("unsupported") == 0


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in RUNNABLE if "cpu" in REGISTRY.backend(name).devices])
def test_it_conforms_on_many_generated_cases(name: str, seed: int) -> None:
    backend = REGISTRY.backend(name)
    cases = {op: generated_cases(op, 200, seed) for op in backend.ops}
    result = verify(backend, cases=cases, seed=seed)
    assert result.passed, failures(result)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, each in REGISTRY.backends.items() if "cuda" in each.devices])
def test_it_conforms_on_cuda(name: str) -> None:
    reason = REGISTRY.backend(name).unavailable() or no_cuda_device()
    if reason:
        pytest.skip(f"{name}: {reason}")
    result = verify(REGISTRY.backend(name), device="cuda")
    assert result.passed, failures(result)


@pytest.mark.parametrize("name", BASIC)
def test_the_basic_ones_support_every_case(name: str) -> None:
    """What issue and design ask of them; `verify` itself lets a backend decline."""
    assert set(REGISTRY.backend(name).ops) == {name for name, op in OPS.items() if op.base is None}
    assert report(name, "cpu").count("unsupported") == 0
    assert {"cpu", "cuda"} <= set(REGISTRY.backend(name).devices)


@pytest.mark.parametrize("name", [name for name in RUNNABLE if "cpu" in REGISTRY.backend(name).devices])
def test_ours_compile_and_are_differentiable_twice(name: str) -> None:
    assert report(name, "cpu").compiles == "passed"
    assert set(REGISTRY.backend(name).second_order) == set(REGISTRY.backend(name).ops)


def test_the_baseline_takes_every_dtype() -> None:
    assert set(REGISTRY.backend("torch").dtypes) == set(DTYPES)
    assert set(DTYPES) - set(REGISTRY.backend("torch").dtypes_on("cpu")) == {"tf32"}
    cases = {op: conformance_cases(op)[:2] for op in REGISTRY.backend("torch").ops}
    result = verify("torch", cases=cases)
    assert result.passed, failures(result)
    passed = {outcome.dtype for outcome in result.outcomes}
    assert passed == set(REGISTRY.backend("torch").dtypes_on("cpu"))


@pytest.mark.parametrize("backend", REGISTRY.backends.values(), ids=list(REGISTRY.backends))
def test_its_record_says_what_it_is(backend: Backend) -> None:
    assert backend.summary
    assert "\n" not in backend.summary
    assert set(backend.dtypes) <= set(DTYPES)
    assert set(backend.dtype_devices) <= set(backend.dtypes)
    for device in backend.devices:
        assert torch.device(device).type == device
    reason = backend.unavailable()
    if reason is not None and "not installed" in reason:
        pytest.skip(f"{backend.name} is unavailable: {reason}")
    assert set(backend.ops) <= set(OPS)
