"""The figures that are asked of an H200. Ratios hold on every GPU; rates are asserted on an H200 only.

Each test is a run of its own, interleaved as any other, and prints what it found beside the roof of the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from convbench.registry import discover
from convbench.results.schema import Row
from convbench.suites import run
from convbench.suites.config.suite import Suite

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
BOOK_RESNET = 5000.0  # images/s of ResNet-18 at 96x96 in Dive into Deep Learning 8.6, on its GPU
REGISTRY = discover()
Measure = Callable[..., list[Row]]


@pytest.fixture
def measured(tmp_path: Path) -> Measure:
    """Run a suite on the first GPU; its rows, without verifications."""

    def measure(**options: Any) -> list[Row]:
        kinds = options.pop("kinds", ("time",))
        suite = Suite(name="figures", devices=("cuda:0",), kinds=kinds).override(options)
        rows = [row for row in run(suite, out=tmp_path / "run").rows if row.kind in kinds]
        assert rows
        for row in rows:
            assert row.status in ("ok", "budget"), f"{row.combination.label}: {row.error}"
        return rows

    return measure


def on_an_h200(rate: float, least: float) -> None:
    """Assert a rate, where this is the GPU that it is asked of."""
    name = torch.cuda.get_device_name(0)
    print(f"\n{name}: {rate:,.0f} images/s")
    if "H200" in name:
        assert rate >= least


def rate(rows: Sequence[Row], **fields: Any) -> float:
    """The median images/s of the processes that have these fields."""
    chosen = [r for r in rows if all(getattr(r, name) == value for name, value in fields.items())]
    return statistics.median(row.images_per_second or 0.0 for row in chosen)


def layer_times(rows: Sequence[Row], backend: str, phase: str) -> dict[str, float]:
    """The median time of a phase of every layer, by its name."""
    times: dict[str, list[float]] = {}
    for row in rows:
        if row.backend == backend:
            times.setdefault(row.architecture, []).append(getattr(row, phase))
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(rows: Sequence[Row], backend: str, phase: str) -> float:
    """How many times as fast as torch: the geometric mean over layers, of the layers that both have."""
    ours, torchs = layer_times(rows, backend, phase), layer_times(rows, "torch", phase)
    common = sorted(set(ours) & set(torchs))
    assert common
    found = statistics.geometric_mean(torchs[name] / ours[name] for name in common)
    print(f"\n{backend}, {phase}, {len(common)} layers: {found:.2f} of torch")
    return found


def needs(backend: str) -> None:
    """Skip where a backend is not here."""
    if backend not in REGISTRY.backends:
        pytest.skip(f"backend {backend!r} is not registered")
    if reason := REGISTRY.backend(backend).unavailable():
        pytest.skip(reason)


def test_lenet_as_a_graph(measured: Measure) -> None:
    options = {"architectures": ("lenet",), "backends": ("torch",), "modes": ("eager", "graph")}
    rows = measured(**options, batch_sizes=(128,))
    eager, graph = rate(rows, mode="eager"), rate(rows, mode="graph")
    print(f"\nLeNet at batch 128: {graph / eager:.1f} times eager")
    assert graph >= 10 * eager
    on_an_h200(graph, 500_000)


def test_lenet_as_a_graph_at_batch_1024(measured: Measure) -> None:
    rows = measured(architectures=("lenet",), backends=("torch",), modes=("graph",), batch_sizes=(1024,))
    on_an_h200(rate(rows), 2_000_000)


def test_resnet_in_bfloat16(measured: Measure) -> None:
    options: dict[str, Any] = {"dtypes": ("bfloat16",), "memory_formats": ("channels_last",)}
    options |= {"modes": ("compile",), "timing.cudnn": "trial", "timing.max_seconds": 10.0}
    rows = measured(architectures=("resnet18",), backends=("torch",), **options)
    print(f"\nshare of the roofline: {rows[0].roofline_fraction}")
    on_an_h200(rate(rows), 8 * BOOK_RESNET)


def test_triton_beside_cudnn(measured: Measure) -> None:
    needs("triton")
    options = {
        "dtypes": ("bfloat16",),
        "timing.cudnn": "trial",
        "timing.max_seconds": 3.0,
        "timing.rounds": 2,
    }
    rows = measured(architectures=("layers/*",), backends=("torch", "triton"), **options)
    assert ratio(rows, "triton", "forward_ms") >= 0.8
    assert ratio(rows, "triton", "backward_ms") >= 0.7


def test_cuda_on_few_channels(measured: Measure) -> None:
    needs("cuda")
    few = tuple(
        name
        for name, each in REGISTRY.architectures.items()
        if name.startswith("layers/") and each.input_shape[0] <= 4 and "pool" not in name
    )
    rows = measured(architectures=few, backends=("torch", "cuda"), **{"timing.cudnn": "trial"})
    assert ratio(rows, "cuda", "step_ms_median") >= 2


def test_auto_is_never_slower_than_torch(measured: Measure) -> None:
    needs("auto")
    rows = measured(architectures=("layers/*",), backends=("torch", "auto"), **{"timing.max_seconds": 3.0})
    ours, torchs = (layer_times(rows, name, "step_ms_median") for name in ("auto", "torch"))
    slower = {name: torchs[name] / ours[name] for name in ours if torchs[name] / ours[name] < 0.97}
    assert slower == {}, "slower than torch by more than timing scatters"


def test_the_whole_recipe_of_lenet(measured: Measure) -> None:
    options = {"modes": ("graph",), "recipe.epochs": 10, "kinds": ("train",), "budget.train_seconds": 120.0}
    (row,) = measured(architectures=("lenet",), backends=("torch",), **options)
    print(
        f"\nten epochs: {row.train_seconds:.2f} s to an accuracy of {row.val_accuracy:.3f} on {row.dataset}"
    )
    assert row.epochs == 10
