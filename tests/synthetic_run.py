"""A run directory as a run leaves it, made of invented numbers: for the tests of what shows a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from convbench.results import Combination, Epoch, Row, Sample
from convbench.results.storage.csv_format import header, to_line
from result_rows import LENET, row

STEP_MS = {"torch": 10.0, "im2col": 24.0, "fft": 61.0, "loops": 1900.0}
ENVIRONMENT = {
    "operating_system": "An operating system 1",
    "cpu_flags": ["avx2", "fma"],
    "logical_cores": 8,
    "memory_gb": 31.4,
    "turbo": None,
    "torch": {"version": "2.11.0", "threads": 2},
    "variables": {"OMP_NUM_THREADS": "2"},
    "peaks": {"cpu": {"float32": {"gflops_per_second": 100.0, "gb_per_second": 20.0}}},
    "torch_build": "PyTorch built with:\n  - a compiler",
}


def synthetic_run(
    directory: Path,
    step_ms: Mapping[str, float] = STEP_MS,
    *,
    architectures: Sequence[str] = ("lenet",),
    processes: int = 3,
    steps: int = 30,
    seeds: int = 1,
    more: Sequence[Row] = (),
) -> Path:
    """Write a run of backends with these step times, and of whatever `more` rows."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    samples: list[Sample] = []
    epochs: list[Epoch] = []
    for architecture in architectures:
        for backend, each in step_ms.items():
            combination = Combination(**(asdict(LENET) | {"architecture": architecture, "backend": backend}))
            who: dict[str, Any] = asdict(combination)
            served = {"served": "conv2d 2/2, avg_pool2d 2/2", "served_calls": 4, "served_flops_fraction": 1.0}
            plugin = {"plugin": "convbench", "plugin_version": "0.1.0"}
            known: dict[str, Any] = {"parameters": 61706} | served | plugin
            rows.append(row(kind="verify", max_error=3e-7 * random.random(), **who, **known))
            for number in range(processes):
                times = each * random.normal(1, 0.02) * random.lognormal(0, 0.05, steps)
                samples += [
                    Sample(run_id="run", round=number, step=at, step_ms=float(value), **who)
                    for at, value in enumerate(times)
                ]
                rows.append(timing(number, times, who | known))
            for seed in range(seeds):
                curve = list(training(who | {"seed": seed}, each, random))
                epochs += curve
                rows.append(trained(curve, who | {"seed": seed} | known))
    write(directory / "results.csv", Row, [*rows, *more])
    write(directory / "samples.csv", Sample, samples)
    write(directory / "curves.csv", Epoch, epochs)
    (directory / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    (directory / "suite.toml").write_text('name = "lenet"\n', encoding="utf-8")
    return directory


def timing(number: int, times: Any, values: Mapping[str, Any]) -> Row:
    """The row of a process that timed."""
    middle = float(np.median(times))
    parts = {"data_ms": 0.1, "forward_ms": 0.35, "backward_ms": 0.5, "optimizer_ms": 0.05}
    return row(
        round=number,
        step_ms_median=middle,
        step_ms_p10=float(np.percentile(times, 10)),
        step_ms_p90=float(np.percentile(times, 90)),
        images_per_second=128e3 / middle,
        flops_per_image=832e3,
        step_flops_per_image=2.4e6,
        step_bytes_per_image=6e5,
        arithmetic_intensity=4.0,
        gflops_per_second=128 * 2.4e6 / middle / 1e6,
        **{name: middle * share for name, share in parts.items()},
        **values,
    )


def training(who: Mapping[str, Any], step_ms: float, random: Any) -> Iterator[Epoch]:
    """Ten epochs, or those that fit into ten minutes."""
    for epoch in range(1, 11):
        seconds = epoch * 469 * step_ms / 1000
        if seconds > 600 and epoch > 1:
            return
        yield Epoch(
            run_id="run",
            epoch=float(epoch),
            steps=469 * epoch,
            train_images_seen=60000 * epoch,
            train_seconds=seconds,
            train_loss=2.3 * math.exp(-epoch / 3) + 0.3,
            val_loss=2.3 * math.exp(-epoch / 3) + 0.35,
            val_accuracy=0.9 - 0.6 * math.exp(-epoch / 2) + random.normal(0, 0.004),
            **who,
        )


def trained(curve: Sequence[Epoch], values: Mapping[str, Any]) -> Row:
    """The row of the process that trained along this curve."""
    last = curve[-1]
    status = "ok" if last.epoch == 10 else "budget"
    ends = {"epochs": last.epoch, "steps": last.steps, "train_seconds": last.train_seconds}
    note = None if status == "ok" else f"{last.epoch:g} of 10 epochs within its budget of 600 s"
    return row(
        kind="train",
        status=status,
        notes=note,
        train_loss=last.train_loss,
        val_loss=last.val_loss,
        val_accuracy=last.val_accuracy,
        **ends,
        **values,
    )


def write(path: Path, record: type[Any], records: Sequence[Any]) -> None:
    """Write a file of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header(record) + "".join(map(to_line, records)), encoding="utf-8")
