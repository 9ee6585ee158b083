"""Rooflines: the arithmetic of a roof by hand, the measurement on a fake clock, and on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import misbehaving
from convbench.results.schema import Row
from convbench.suites import run
from convbench.suites.measure import devices, roofline
from convbench.suites.measure.op_counter import Work
from convbench.suites.measure.roofline import Roof, measure_roof
from convbench.suites.processes.probe import find_peaks
from convbench.suites.processes.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("preloaded_servers")

CPU = torch.device("cpu")


def test_a_layer_takes_what_its_slower_half_takes() -> None:
    roof = Roof(gflops_per_second=100.0, gb_per_second=10.0)
    arithmetic = Work("convolution", flops=5 * 10**9, bytes=10**8)  # 50 ms of arithmetic, 10 ms of memory
    memory = Work("sigmoid", flops=0, bytes=3 * 10**8)  # 30 ms of memory
    assert roof.seconds([arithmetic]) == pytest.approx(0.05)
    assert roof.seconds([memory]) == pytest.approx(0.03)
    assert roof.seconds([arithmetic, memory]) == pytest.approx(0.08)
    assert roof.seconds([]) == 0


def test_lenets_first_convolution_by_hand() -> None:
    """Eight images: 1,881,600 operations and 176,240 bytes, 10.7 a byte, right of a ridge of 10 and left of 20."""
    roof = Roof(gflops_per_second=100.0, gb_per_second=10.0)
    assert roof.seconds([Work("convolution", 2 * 8 * 4704 * 25, 176_240)]) == pytest.approx(
        17.624e-6 + 1.192e-6
    )


class Machine:
    """A clock that runs only while something is computed, at a rate of its own for every kind of run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(devices, "_now_ns", lambda: round(self.now * 1e9))

    def runs(self, *kinds: tuple[float, float]) -> Iterator[tuple[float, Any]]:
        """Each with how much it does and how long that takes."""
        for amount, seconds in kinds:

            def call(seconds: float = seconds) -> None:
                self.now += seconds
                self.calls += 1

            yield amount, call


def test_the_best_of_all_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    runs = machine.runs((1.0, 0.001), (8.0, 0.002), (64.0, 0.02))
    assert roofline._best_rate(CPU, runs, seconds=1.0) == pytest.approx(4000.0)
    assert machine.now >= 1.0  # the rest of the time is given to the best


def test_a_slow_dtype_costs_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    runs = machine.runs((1.0, 0.05), (8.0, 0.4), (64.0, 3.2))
    assert roofline._best_rate(CPU, runs, seconds=1.0) == pytest.approx(20.0)
    assert machine.now < 2.0


def test_this_machine_has_a_roof() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        roof = measure_roof(CPU, torch.float32)
        again = roof.joined(measure_roof(CPU, torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert 0.1 < roof.gflops_per_second < 1e4
    assert 0.1 < roof.gb_per_second < 1e4
    assert again.gflops_per_second >= roof.gflops_per_second
    assert again.gb_per_second >= roof.gb_per_second


def test_copies_are_longer_than_the_last_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "LAST_CACHE", tmp_path / "size")
    assert roofline._copied_bytes(CPU) == 64 * 10**6
    (tmp_path / "size").write_text("49152K\n")
    assert roofline._copied_bytes(CPU) == 2 * 49152 * 1024
    (tmp_path / "size").write_text("999999K\n")
    assert roofline._copied_bytes(CPU) == 256 * 10**6


def test_a_pair_that_cannot_be_measured_is_left_out_with_a_note(tmp_path: Path) -> None:
    notes: list[str] = []
    wanted = [("cpu", "float32"), ("cpu", "float32"), ("cpu", "float31")]
    with Supervisor(tmp_path / "log") as supervisor:
        peaks = find_peaks(supervisor, wanted, notes.append, threads=1, memory_mb=2000)
    assert list(peaks) == ["cpu"]
    assert list(peaks["cpu"]) == ["float32"]
    assert set(peaks["cpu"]["float32"]) == {"gflops_per_second", "gb_per_second"}
    assert any(text.startswith("no roofline for float31 on cpu: ") for text in notes)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Row, ...]]:
    """A run of two layers: one of arithmetic, one that only moves memory."""
    from convbench.suites.config.suite import Suite, Timing

    out = tmp_path_factory.mktemp("roofline") / "run"
    suite = Suite(
        name="layers",
        architectures=("layers/resnet-block", "layers/resnet-pool"),
        backends=("torch",),
        dataset="fashion-mnist-sample",
        devices=("cpu",),
        kinds=("time",),
        timing=Timing(rounds=1, warmup_steps=1, steps=5, max_seconds=5.0, threads=1),
    )
    return out, run(suite, out=out).rows


def test_rows_say_what_share_of_the_attainable_they_reached(rows: tuple[Path, tuple[Row, ...]]) -> None:
    out, found = rows
    peaks = json.loads((out / "environment.json").read_text())["peaks"]
    roof = Roof(**peaks["cpu"]["float32"])
    timed = [row for row in found if row.kind == "time"]
    assert len(timed) == 2
    for row in timed:
        assert row.status == "ok"
        assert row.step_bytes_per_image is not None
        assert row.roofline_step_ms is not None
        assert row.step_ms_median is not None
        assert row.roofline_fraction == pytest.approx(row.roofline_step_ms / row.step_ms_median)
        # the peaks are of another moment than the steps, and somebody may have been in the way of either
        assert 0 < row.roofline_fraction < 1.5
        # no layer can be faster than its bytes, nor than its operations
        memory = row.step_bytes_per_image * row.batch_size / roof.gb_per_second / 1e6
        arithmetic = (row.step_flops_per_image or 0) * row.batch_size / roof.gflops_per_second / 1e6
        assert max(memory, arithmetic) * 0.999 <= row.roofline_step_ms <= (memory + arithmetic) * 1.001
    intensities = [row.arithmetic_intensity or 0.0 for row in timed]
    assert min(intensities) == 0 < max(intensities)


def test_without_timing_or_training_nothing_is_measured(tmp_path: Path) -> None:
    site = misbehaving.install(tmp_path / "site")
    with misbehaving.on_path(site):
        result = run(misbehaving.suite("right"), out=tmp_path / "run", time=False, train=False)
    assert json.loads((result.path / "environment.json").read_text())["peaks"] == {}
    assert result.rows[0].roofline_step_ms is None
