"""A short run on a Ray of this machine alone; test_on_ray.py has what several machines show."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from conftest import SESSION, processes_with
from convbench.results.storage.store import RunStore
from convbench.suites import Suite, run
from convbench.suites.config.suite import Budget, Timing

pytest.importorskip("ray")

SUITE = Suite(
    name="small",
    dataset="fashion-mnist-sample",
    architectures=("lenet",),
    backends=("im2col", "torch"),
    devices=("cpu",),
    batch_sizes=(16,),
    kinds=("verify", "time"),
    budget=Budget(timeout_seconds=60.0),
    timing=Timing(rounds=1, warmup_steps=1, steps=2, threads=1, quiet_seconds=0),
)


@pytest.mark.timeout(120)
def test_a_short_run_on_a_cluster_of_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr("convbench.suites.runner.run._write_pages", lambda store: None)
    before = {each.pid for each in processes_with(os.environ[SESSION])}
    rows = run(SUITE, out=tmp_path / "run", cluster="local").rows
    assert Counter((row.kind, row.backend, row.status) for row in rows) == {
        (kind, backend, "ok"): 1 for kind in SUITE.kinds for backend in SUITE.backends
    }
    assert {row.block for row in rows if row.kind == "time"} == {
        "lenet/cpu/float32/b16/contiguous/eager/time0"
    }
    (machine,) = {(row.node, row.machine_id, row.device_name) for row in rows}
    assert all(machine)
    with RunStore.open(tmp_path / "run") as store:
        steps = Counter(sample.backend for sample in store.samples())
    assert steps == dict.fromkeys(SUITE.backends, SUITE.timing.steps)
    left = {each.pid for each in processes_with(os.environ[SESSION])} - before
    assert not left
