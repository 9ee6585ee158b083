"""Two distributions of third parties, installed by pip: the README's backend, and one that raises on import."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from readme import block

Convbench = Callable[..., subprocess.CompletedProcess[str]]

BROKEN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "convbench-broken"
version = "0.3"

[project.entry-points.convbench]
broken = "convbench_broken"
"""


def on_one_core() -> None:
    """Small cases take longer on several: threads wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


@pytest.fixture(scope="module")
def convbench(tmp_path_factory: pytest.TempPathFactory) -> Convbench:
    """The command line in a process that sees both distributions, which no other process does."""
    pytest.importorskip("hatchling")
    work = tmp_path_factory.mktemp("third-party")
    site = work / "site-packages"
    sources = {
        "convbench_unfold": (block("toml", "convbench-unfold"), block("python", "convbench_backends")),
        "convbench_broken": (BROKEN_PROJECT, "import a_library_that_is_not_there"),
    }
    for module, (project, code) in sources.items():
        (work / module).mkdir()
        (work / module / "pyproject.toml").write_text(project, encoding="utf-8")
        (work / module / f"{module}.py").write_text(code, encoding="utf-8")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    command = [*pip, "--target", site, *(work / module for module in sources)]
    subprocess.run(command, check=True, capture_output=True)
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "convbench.registry", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=work, preexec_fn=on_one_core
        )

    return call


def listed(convbench: Convbench, kind: str) -> dict[str, dict[str, Any]]:
    ended = convbench("list", kind, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    return {entry["name"]: entry for entry in json.loads(ended.stdout)}


def test_the_good_one_is_listed_with_its_distribution(convbench: Convbench) -> None:
    entry = listed(convbench, "backends")["unfold"]
    assert (entry["plugin"], entry["state"]) == ("convbench-unfold 0.1", "available")


def test_the_broken_one_is_shown_with_distribution_version_and_error(convbench: Convbench) -> None:
    shown = " ".join(map(str, listed(convbench, "plugins")["broken"].values()))
    assert "convbench-broken 0.3" in shown
    assert "ModuleNotFoundError: No module named 'a_library_that_is_not_there'" in shown


def test_the_good_one_conforms(convbench: Convbench) -> None:
    ended = convbench("verify", "unfold", "--cases", "1", "--dtype", "float32")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("unfold: ok")


def test_the_good_one_runs_in_a_suite(convbench: Convbench, tmp_path: Path) -> None:
    choice = "--suite lenet --architecture lenet --backend unfold,torch --device cpu --batch-size 16"
    data = "--dataset fashion-mnist-sample"
    effort = "--rounds 1 --warmup-steps 0 --steps 2 --budget 1 --epochs 1 --threads 1"
    ended = convbench("run", *f"{choice} {data} {effort}".split(), "--out", str(tmp_path / "run"))
    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "run" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = {row["kind"]: row for row in rows if row["backend"] == "unfold"}
    assert set(ours) == {"verify", "time", "train"}
    assert all(row["status"] in ("ok", "budget") for row in rows), rows
    for row in ours.values():
        assert (row["plugin"], row["plugin_version"]) == ("convbench-unfold", "0.1")
    assert ours["time"]["served"] == "conv2d 2/2, avg_pool2d 0/2"
    assert float(ours["train"]["images_per_second"]) > 0
