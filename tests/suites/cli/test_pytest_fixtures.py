"""The fixtures for pytest-benchmark: every backend, named so that `compare` knows it, and never a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - see below
import pytest
import torch  # noqa: F401 - see below

from conftest import Install
from convbench.results import compare
from convbench.suites import Suite, run
from convbench.suites.config.suite import Timing

pytestmark = pytest.mark.usefixtures("preloaded_servers")

# It makes the process forget what a test was the first to import. numpy and pandas bear no second import, and are
# therefore imported above.
pytest_plugins = ["pytester"]

PLUGIN = """
    import torch.nn.functional as F
    from convbench.registry import Backend, hookimpl

    def wrong(*arguments, **options):
        return F.conv2d(*arguments, **options) * 1.5

    @hookimpl
    def convbench_backends():
        yield Backend("mine", "", lambda: {"conv2d": F.conv2d})
        yield Backend("mine-wrong", "", lambda: {"conv2d": wrong})
        yield Backend("mine-absent", "", lambda: {"conv2d": F.conv2d}, unavailable=lambda: "no such chip")
"""
TESTS = """
    def test_op(time_op):
        time_op("conv2d", {"input": (2, 1, 8, 8), "weight": (3, 1, 3, 3), "bias": (3,)}, padding=1)

    def test_step(time_step):
        time_step("layers/lenet-conv1", batch_size=4)

    def test_training(time_step):
        time_step("lenet", batch_size=4)
"""
KEEP = (
    "-k",
    "mine",
    "-p",
    "no:cacheprovider",
    "--benchmark-json",
    "out.json",
    "--benchmark-max-time",
    "0.05",
)


@pytest.fixture
def found(install: Install, pytester: pytest.Pytester) -> tuple[pytest.RunResult, dict[str, Any]]:
    install("mine", PLUGIN)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(*KEEP, "-rsf", timeout=200)
    content = json.loads((pytester.path / "out.json").read_text())
    return result, {each["name"]: each for each in content["benchmarks"]}


def test_what_is_right_is_timed_and_named(
    found: tuple[pytest.RunResult, dict[str, Any]], pytester: pytest.Pytester, tmp_path: Path
) -> None:
    result, benchmarks = found
    result.assert_outcomes(passed=3, failed=3, skipped=3)
    result.stdout.fnmatch_lines(["failed: conv2d(*", "*no such chip"])
    assert set(benchmarks) == {f"test_{name}[mine-cpu]" for name in ("op", "step", "training")}
    op, step, training = (benchmarks[f"test_{name}[mine-cpu]"] for name in ("op", "step", "training"))
    assert op["group"] == "conv2d(input=(2, 1, 8, 8), weight=(3, 1, 3, 3), bias=(3,), padding=1) float32 cpu"
    assert op["extra_info"]["flops"] == 2 * (2 * 3 * 8 * 8) * 9
    assert (op["extra_info"]["dtype"], op["extra_info"]["plugin"]) == ("float32", "mine")
    assert step["group"] == "layers/lenet-conv1 b4 float32 cpu"
    assert training["extra_info"]["step_flops_per_image"] > 3e5
    # the step of a layer is what `convbench run` times, so that the two are comparable
    suite = Suite(
        name="ops",
        architectures=("layers/lenet-conv1",),
        backends=("mine",),
        devices=("cpu",),
        batch_sizes=(4,),
        timing=Timing(rounds=1, warmup_steps=1, steps=3, threads=step["extra_info"]["threads"]),
    )
    ran = run(suite, out=tmp_path / "run", train=False)
    (pair,) = compare(ran.path, pytester.path / "out.json").times
    assert pair.combination.backend == "mine"
    assert pair.base_served == pair.new_served == 1
    assert 0.9 < training["extra_info"]["served_flops_fraction"] < 1  # the poolings are torch's


def test_it_is_light() -> None:
    script = (
        "import sys, convbench.suites.cli.pytest_fixtures;"
        "print([name for name in ('torch', 'numpy', 'pandas', 'click') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"
