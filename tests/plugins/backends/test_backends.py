"""Every registered backend keeps the contract, whoever brings it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from convbench.registry import OPS, Backend, discover, no_cuda_device, verify
from convbench.registry.conformance.cases import conformance_cases
from convbench.registry.conformance.verify import Report
from convbench.registry.ops.dtypes import DTYPES
from convbench.suites.processes.verification import verify_backends

REGISTRY = discover()
BASIC = ["im2col", "loops", "torch"]  # which take every case
ON_THE_CPU = [
    name
    for name, backend in REGISTRY.backends.items()
    if "cpu" in backend.devices and backend.unavailable() is None
]


pytestmark = pytest.mark.usefixtures("preloaded_servers")


def verified(name: str, device: str = "cpu", **options: Any) -> Report:
    """Verified in workers: what crashes them is a failed case, and not the end of these tests."""
    # one thread: the cases are small, and handing them to others costs more than it saves
    (result,) = verify_backends(REGISTRY, [name], device=device, threads=1, timeout=800, **options)
    assert result.status in ("ok", "incorrect", "crashed", "error"), result.line
    return result.report


@cache
def report(name: str, device: str) -> Report:
    """Of the whole contract in the backend's first dtype."""
    return verified(name, device, dtypes=REGISTRY.backend(name).dtypes_on(device)[:1], generated=5)


def failures(report: Report) -> str:
    """Those that no known fault of torch explains."""
    return "\n".join(f"{outcome.case}: {outcome.message}" for outcome in report.unexplained)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_it_conforms_on_the_cpu(name: str) -> None:
    result = report(name, "cpu")
    assert result.passed, failures(result)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_it_conforms_in_every_dtype_on_many_generated_cases(name: str, seed: int) -> None:
    result = verified(name, generated=200, seed=seed)
    assert result.passed, failures(result)
    assert name not in BASIC or result.count("unsupported") == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, each in REGISTRY.backends.items() if "cuda" in each.devices])
def test_it_conforms_on_cuda(name: str) -> None:
    reason = REGISTRY.backend(name).unavailable() or no_cuda_device()
    if reason:
        pytest.skip(f"{name}: {reason}")
    result = verified(name, "cuda")
    assert result.passed, failures(result)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("winograd", {"not offered", "kernels of 3x3 only, not 5x5"}),
        ("winograd_4x4", {"not offered", "kernels of 3x3 only, not 5x5"}),
        ("fft", {"not offered"}),
    ],
)
def test_some_say_what_they_do_not_do(name: str, reasons: set[str]) -> None:
    declined = [outcome for outcome in report(name, "cpu").outcomes if outcome.state == "unsupported"]
    assert reasons <= {outcome.message for outcome in declined}
    assert {"max_pool2d", "avg_pool2d"} <= {outcome.op for outcome in declined}
    assert name != "fft" or "conv2d" not in {outcome.op for outcome in declined}


@pytest.mark.parametrize("name", [*BASIC, "shift"])
def test_the_basic_ones_support_every_case(name: str) -> None:
    """What issue and design ask of them; `verify` itself lets a backend decline."""
    assert set(REGISTRY.backend(name).ops) == {name for name, op in OPS.items() if op.base is None}
    assert report(name, "cpu").count("unsupported") == 0
    assert {"cpu", "cuda"} <= set(REGISTRY.backend(name).devices)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_ours_compile_and_are_differentiable_twice(name: str) -> None:
    assert report(name, "cpu").compiles == "passed"
    assert set(REGISTRY.backend(name).second_order) == set(REGISTRY.backend(name).ops)


def test_the_baseline_takes_every_dtype() -> None:
    assert set(REGISTRY.backend("torch").dtypes) == set(DTYPES)
    assert set(DTYPES) - set(REGISTRY.backend("torch").dtypes_on("cpu")) == {"tf32"}
    cases = {op: conformance_cases(op)[:2] for op in REGISTRY.backend("torch").ops}
    result = verify("torch", cases=cases)
    assert result.passed, failures(result)
    passed = {outcome.dtype for outcome in result.outcomes if outcome.state == "passed"}
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
