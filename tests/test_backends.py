"""Every registered backend keeps the contract, whoever brings it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from convbench.registry import OPS, Backend, discover, no_cuda_device
from convbench.registry.arithmetic import DTYPES
from convbench.registry.conformance import Report
from convbench.suites.verification import verify_backends

REGISTRY = discover()
RUNNABLE = [name for name, backend in REGISTRY.backends.items() if backend.unavailable() is None]


@cache
def report(name: str, device: str) -> Report:
    """Verified in workers: what crashes them is a failed case, and not the end of these tests."""
    (result,) = verify_backends(REGISTRY, [name], device=device, threads=1)  # small cases: more would wait
    assert result.status in ("ok", "incorrect", "crashed", "error"), result.line
    return result.report


def failures(report: Report) -> str:
    """Those that no known fault of torch explains."""
    return "\n".join(f"{outcome.case}: {outcome.message}" for outcome in report.unexplained)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [name for name in RUNNABLE if "cpu" in REGISTRY.backend(name).devices])
def test_it_conforms_on_the_cpu(name: str) -> None:
    result = report(name, "cpu")
    assert result.passed, failures(result)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in RUNNABLE if "cpu" in REGISTRY.backend(name).devices])
def test_it_conforms_on_many_generated_cases(name: str, seed: int) -> None:
    (result,) = verify_backends(REGISTRY, [name], generated=200, seed=seed, threads=1)
    assert result.status == "ok", failures(result.report)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, each in REGISTRY.backends.items() if "cuda" in each.devices])
def test_it_conforms_on_cuda(name: str) -> None:
    reason = REGISTRY.backend(name).unavailable() or no_cuda_device()
    if reason:
        pytest.skip(f"{name}: {reason}")
    result = report(name, "cuda")
    assert result.passed, failures(result)


@pytest.mark.parametrize("name", ["im2col", "loops", "torch"])
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
    passed = {
        outcome.dtype
        for outcome in report("torch", "cpu").outcomes
        if outcome.kind == "case" and outcome.state == "passed"
    }
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
