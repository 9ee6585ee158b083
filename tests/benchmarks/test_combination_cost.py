"""What a further combination costs beyond its own work: the processes it is verified, timed and trained in."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from convbench.suites import Suite, run
from convbench.suites.suite import Budget, RecipeOverrides, Timing
from convbench.suites.watching import Silent

# a network and data so small that their own work is a few milliseconds
PLUGIN = """
    from convbench.registry import Architecture, Backend, Dataset, Images, Recipe, hookimpl

    def conv2d(*arguments, **options):
        import torch
        return torch.nn.functional.conv2d(*arguments, **options)

    def build(num_classes=10, in_channels=1):
        from torch import nn
        return nn.Sequential(nn.Conv2d(in_channels, 2, 3), nn.Flatten(), nn.Linear(72, num_classes))

    def load(root=None):
        import torch
        split = torch.zeros(32, 1, 8, 8, dtype=torch.uint8), torch.arange(32) % 10
        return Images("tiny", *split, *split)

    @hookimpl
    def convbench_backends():
        return [Backend("tiny", "a fake", load=lambda: {"conv2d": conv2d})]

    @hookimpl
    def convbench_architectures():
        return [Architecture("tiny", "a fake", build=build, input_shape=(1, 8, 8), recipe=Recipe(init="default"))]

    @hookimpl
    def convbench_datasets():
        return [Dataset("tiny", "a fake", load=load)]
"""
LIMIT = 0.5  # seconds
COMBINATIONS = 12


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "tiny_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[convbench]\ntiny = plugin_of_combination_cost\n")
    (info.parent / "plugin_of_combination_cost.py").write_text(dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(info.parent))


class Clock(Silent):
    """When each process began and ended."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []

    def start(self, task: Any) -> None:
        self._began = time.perf_counter()

    def finish(self, task: Any, row: Any) -> None:
        assert row.status == "ok", row.error
        self.seconds.append((task.kind, time.perf_counter() - self._began))


@pytest.mark.usefixtures("plugin")
def test_a_further_combination_costs_less_than_half_a_second(tmp_path: Path, benchmark: Any) -> None:
    """Verified, timed in one round and trained: three processes, of which the median of several is taken."""
    clock = Clock()
    suite = Suite(
        name="cost",
        dataset="tiny",
        architectures=("tiny",),
        backends=("tiny",),
        devices=("cpu",),
        batch_sizes=(16,),
        seeds=tuple(range(COMBINATIONS)),
        recipe=RecipeOverrides(epochs=1),
        budget=Budget(memory_mb=4000),
        timing=Timing(rounds=1, warmup_steps=1, steps=1, threads=1),
    )
    benchmark.pedantic(run, (suite,), {"out": tmp_path / "run", "watcher": clock}, rounds=1, iterations=1)
    medians = {
        kind: statistics.median(seconds for name, seconds in clock.seconds if name == kind)
        for kind in ("verify", "time", "train")
    }
    cost = sum(medians.values())
    benchmark.extra_info.update(medians, seconds_per_combination=cost)
    print(f"\n{cost:.3f} s per combination: {medians}")
    assert cost < LIMIT
