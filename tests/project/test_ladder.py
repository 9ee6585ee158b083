"""docs/ladder.md and its picture are of the kept run, which has every rung; the suite is the one that made it."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from convbench.registry import discover
from convbench.suites import load_suite
from convbench.suites.config.plan import plan

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_ladder.py"
GUIDE = ROOT / "docs" / "ladder.md"
RUN = "ladder-cpu"


@pytest.fixture
def make_ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("make_ladder")


def test_the_page_and_its_picture_are_not_stale() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_stale_is_found(
    make_ladder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(make_ladder.REFERENCE / RUN, reference / RUN)
    before = make_ladder.mark(RUN)
    monkeypatch.setattr(make_ladder, "REFERENCE", reference)
    assert make_ladder.mark(RUN) == before
    old = make_ladder.body("rungs", f"{RUN} lenet")
    results = reference / RUN / "results.csv"
    kept = [line for line in results.read_text(encoding="utf-8").splitlines() if ",fft," not in line]
    results.write_text("\n".join(kept) + "\n", encoding="utf-8")
    make_ladder.contents_of.cache_clear()
    try:
        assert make_ladder.mark(RUN) != before
        new = make_ladder.body("rungs", f"{RUN} lenet")
        assert "`fft`" in old
        assert "`fft`" not in new
        assert "not in this run" in make_ladder.body("rung", f"{RUN} fft")
    finally:
        make_ladder.contents_of.cache_clear()


def test_every_step_is_there_and_the_formula_is_the_lowest(make_ladder: ModuleType) -> None:
    contents = make_ladder.contents_of(RUN)
    for architecture in make_ladder.NETWORKS:
        rungs = make_ladder.ladder(contents, architecture)
        assert {"scalar", "loops", "shift", "im2col", "fft", "winograd", "native", "torch"} <= {
            rung.backend for rung in rungs
        }
        assert ("torch", "compile") in {(rung.backend, rung.mode) for rung in rungs}
        speeds = [rung.gflops_per_second for rung in rungs if rung.gflops_per_second]
        assert rungs[0].backend == "scalar"
        assert speeds[0] == min(speeds)
        assert all(make_ladder.reason(rung) not in ("", "ok") for rung in rungs if not rung.gflops_per_second)


def test_a_rung_says_its_own_batch(make_ladder: ModuleType) -> None:
    contents = make_ladder.contents_of(RUN)
    batches = {rung.backend: rung.batch_size for rung in make_ladder.ladder(contents, "lenet")}
    assert batches["scalar"] == 1
    assert batches["torch"] == 128
    (row,) = re.findall(r"^\| the formula .*$", make_ladder.body("rungs", f"{RUN} lenet"), re.MULTILINE)
    assert row.split(" | ")[2] == "1"


def test_the_factor_is_of_images_and_not_of_steps(make_ladder: ModuleType) -> None:
    bottom, second, *_ = make_ladder.ladder(make_ladder.contents_of(RUN), "lenet")
    interval = make_ladder.speed_ratio(second, bottom)
    assert interval.low < second.images_per_second / bottom.images_per_second < interval.high


def test_the_suite_runs_whatever_there_is() -> None:
    """On a GPU as on a CPU: what cannot run has a row, and only the slow have batches of their own."""
    registry = discover()
    suite = load_suite(registry.suite("ladder"))
    planned = plan(suite, registry, ["cpu", "cuda:0"], {})
    assert {entry.combination.backend for entry in planned} == set(registry.backends)
    on_gpu = {entry.combination.backend: entry for entry in planned if entry.combination.device == "cuda:0"}
    assert on_gpu["torch"].obstacle is None
    assert on_gpu["scalar"].obstacle is not None
    assert {entry.combination.backend for entry in planned if entry.combination.mode == "compile"} >= {
        "torch"
    }


def test_every_step_has_its_paragraph() -> None:
    told = re.findall(rf"<!-- rung: {RUN} (.+) -->", GUIDE.read_text(encoding="utf-8"))
    assert {
        "scalar",
        "loops",
        "shift",
        "im2col",
        "fft",
        "winograd",
        "native",
        "torch",
        "torch compile",
    } <= set(told)
