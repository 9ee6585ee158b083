"""Writes a results.csv of as many rows as one likes, as fast as the disk takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convbench.results.schema import Combination, Row
from convbench.results.storage.csv_format import header, to_line


def write_rows(
    path: Path, *, combinations: int, rounds: int, runs: int, slower: float = 1.0, seed: int = 0
) -> int:
    """`time` rows of every combination, round and run; returns how many. `slower` multiplies every time."""
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        file.write(header(Row))
        for run in range(runs):
            for number in range(combinations):
                factors = slower * random.normal(1.0, 0.01, rounds) * (10 + number % 90)
                before, between, after = template(run, number)
                file.writelines(
                    f"{before}{each}{between}{time:.9g},{time * 0.9:.9g},{time * 1.2:.9g},{time * 0.3:.9g},"
                    f"{time * 0.6:.9g}{after}"
                    for each, time in enumerate(factors.tolist())
                )
    return combinations * rounds * runs


def template(run: int, number: int) -> tuple[str, str, str]:
    """A line of one combination in three parts: round and times belong between them."""
    combination = Combination(
        architecture=f"network{number % 20}",
        backend=f"backend{number // 20}",
        device="cpu",
        dtype="float32",
        batch_size=128,
        memory_format="contiguous",
        mode="eager",
        seed=0,
    )
    row = Row(
        run_id=f"sweep-{run:03}",
        suite="sweep",
        kind="time",
        round=987654321,
        status="ok",
        **vars(combination),
        threads=2,
        dataset="fashion-mnist",
        train_images=60000,
        steps=30,
        images_per_second=12345.6789,
        step_ms_median=1111.25,
        step_ms_p10=2222.25,
        step_ms_p90=3333.25,
        forward_ms=4444.25,
        backward_ms=5555.25,
        optimizer_ms=0.123456789,
        data_ms=0.0123456789,
        setup_seconds=1.23456789,
        parameters=61706,
        flops_per_image=833040.0,
        gflops_per_second=31.2345678,
        served_calls=4,
        served_flops_fraction=1.0,
        max_error=1.23456789e-7,
        convbench_version="0.1.0",
        plugin="convbench",
        plugin_version="0.1.0",
        torch_version="2.11.0+cpu",
        device_name="A processor of sixty-four cores @ 2.0 GHz",
        machine_id="0123456789ab",
        started_at="2026-01-01T00:00:00+00:00",
        order=number,
        served="conv2d 2/2, avg_pool2d 2/2",
        flush_denormal=1,
        recipe="lr=0.1 epochs=10 resize=none init=xavier_uniform",
        step_flops_per_image=2499120.0,
        combination_key=f"{number:016x}",
        served_flops="conv2d 1, avg_pool2d 1",
        supported_ops="conv2d, max_pool2d, avg_pool2d",
    )
    before, between = to_line(row).split("987654321", 1)
    between, after = between.split("1111.25,2222.25,3333.25,4444.25,5555.25", 1)
    return before, between, after
