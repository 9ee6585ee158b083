"""Plugin code of a run is executed in worker processes, and what it does there stays there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import misbehaving
from conftest import Install
from convbench.registry import discover
from convbench.registry.cli.main import main
from convbench.suites import run
from convbench.suites.config.suite import Budget, RecipeOverrides, Suite, Timing
from convbench.suites.processes.supervisor import LONGEST_LOG

pytestmark = pytest.mark.usefixtures("preloaded_servers")

PLUGIN = """
    import json, os
    from pathlib import Path

    from convbench.registry import Architecture, Backend, Dataset, Images, Recipe, hookimpl

    TRACE = Path(__file__).with_name("trace")

    def trace(what):
        with TRACE.open("a") as file:
            file.write(json.dumps([what, os.getpid()]) + "\\n")

    def load():
        import torch.nn.functional as F
        trace("load")
        def conv2d(*args, **kwargs):
            trace("conv2d")
            return F.conv2d(*args, **kwargs)
        return {"conv2d": conv2d}

    def unavailable():
        trace("unavailable")

    def build(num_classes=10, in_channels=1):
        from torch import nn
        trace("build")
        return nn.Sequential(nn.Conv2d(in_channels, 2, 3), nn.Flatten(), nn.Linear(72, num_classes))

    def images(root):
        import torch
        trace("images")
        kinds = torch.arange(40) % 10
        return Images("traced", *(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), kinds) * 2)

    @hookimpl
    def convbench_backends():
        return [Backend("traced", "a fake", load=load, unavailable=unavailable)]

    @hookimpl
    def convbench_architectures():
        recipe = Recipe(init="default")
        return [Architecture("traced", "a fake", build=build, input_shape=(1, 8, 8), recipe=recipe)]

    @hookimpl
    def convbench_datasets():
        return [Dataset("traced", "a fake", load=images)]
"""


def suite(**changes: object) -> Suite:
    values: dict[str, object] = {
        "name": "traced",
        "dataset": "traced",
        "architectures": ("traced",),
        "backends": ("traced",),
        "devices": ("cpu",),
        "batch_sizes": (16,),
        "recipe": RecipeOverrides(epochs=1),
        "budget": Budget(train_seconds=60.0, timeout_seconds=100.0),
        "timing": Timing(rounds=1, warmup_steps=1, steps=2, threads=1),
    }
    return Suite(**{**values, **changes})  # type: ignore[arg-type]


def traced(tmp_path: Path) -> dict[str, set[int]]:
    """Which processes executed each of the plugin's functions."""
    seen: dict[str, set[int]] = {}
    for line in (tmp_path / "site-packages" / "trace").read_text().splitlines():
        what, pid = json.loads(line)
        seen.setdefault(what, set()).add(pid)
    return seen


def test_a_run_executes_no_plugin_in_its_own_process(install: Install, tmp_path: Path) -> None:
    install("traced", PLUGIN)
    result = run(suite(), out=tmp_path / "run")
    assert [row.status for row in result.rows] == ["ok", "ok", "ok"]
    seen = traced(tmp_path)
    assert set(seen) == {"load", "conv2d", "unavailable", "build", "images"}
    assert all(os.getpid() not in processes for processes in seen.values())
    assert len(seen["conv2d"]) == 3  # verification, timing, training: no two share a process


@pytest.mark.parametrize("arguments", [["list", "--json"], ["run", "--suite", "smoke", "--help"]])
def test_list_and_help_execute_no_plugin_in_this_process(
    install: Install, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    install("traced", PLUGIN)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert capsys.readouterr().out
    if arguments[0] == "list":
        assert set(traced(tmp_path)) == {"unavailable"}
        assert os.getpid() not in traced(tmp_path)["unavailable"]


def test_discovery_alone_executes_nothing_but_hooks(install: Install, tmp_path: Path) -> None:
    install("traced", PLUGIN)
    assert discover().backend("traced").name == "traced"
    assert not (tmp_path / "site-packages" / "trace").exists()


def test_output_without_end_is_cut_and_closed_streams_harm_nothing(tmp_path: Path) -> None:
    site = misbehaving.install(tmp_path / "site")
    with misbehaving.on_path(site):
        result = run(misbehaving.suite("floods", "shuts", "right"), out=tmp_path / "run")
    assert {row.status for row in result.rows} == {"ok"}
    log = (tmp_path / "run" / "run.log").read_bytes()
    assert log.count(b"bytes were dropped here]") == 3  # of each of its processes
    assert len(log) < 3 * LONGEST_LOG + 100_000
    losses = {row.val_loss for row in result.rows if row.kind == "train"}
    assert len(losses) == 1
