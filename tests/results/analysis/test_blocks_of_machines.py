"""Runs on several machines: speeds are compared within blocks, so that unlike machines do no harm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from convbench.registry import NothingRan
from convbench.results import compare
from convbench.results.analysis.significance import OnMachine, time_difference, time_ratio
from convbench.results.analysis.standings import comparison_table, standings
from convbench.results.schema import Row
from convbench.results.storage.csv_format import header, to_line
from convbench.results.tables.comparison_table import machines_in
from result_rows import LENET, row

MACHINES = {"fast": 1.0, "slow": 3.0, "middling": 1.7}  # factors of all times


def timing(backend: str, number: int, machine: str, step_ms: float, **more: Any) -> Row:
    values: dict[str, Any] = asdict(LENET) | {
        "backend": backend,
        "round": number,
        "node": machine,
        "machine_id": machine,
        "device_name": f"model of {machine}",
        "block": f"lenet/cpu/float32/b128/contiguous/eager/time{number}",
        "step_ms_median": step_ms,
        "images_per_second": 128 / step_ms * 1000,
    }
    return row(kind="time", **(values | more))


def times(ratio: float, rounds: int = 3) -> dict[str, dict[OnMachine, float]]:
    machines = list(MACHINES)
    names = [OnMachine(number, machines[number % 3]) for number in range(rounds)]
    noise = [1.0, 1.004, 0.997, 1.002, 0.999, 1.001]
    base = {name: 10 * MACHINES[str(name.machine)] * noise[at % 6] for at, name in enumerate(names)}
    return {
        "base": base,
        "new": {name: value * ratio * noise[-at % 6] for at, (name, value) in enumerate(base.items())},
    }


def test_a_small_difference_shows_on_very_unlike_machines() -> None:
    both = times(1.2)
    ratio = time_ratio(both["base"], both["new"])
    assert ratio is not None
    assert 1.15 < ratio.low < 1.2 < ratio.high < 1.25


def test_only_blocks_of_both_are_compared() -> None:
    both = times(1.2)
    first = next(iter(both["new"]))
    elsewhere = {OnMachine(first.process, "another"): both["new"].pop(first), **both["new"]}
    gap = time_difference(both["base"], elsewhere)
    assert gap is not None
    assert gap.paired
    assert gap.processes == 2
    assert math.exp(gap.estimate) == pytest.approx(1.2, rel=0.01)


def test_without_a_block_of_both_there_is_nothing_to_compare() -> None:
    assert time_difference({OnMachine(0, "a"): 1.0}, {OnMachine(0, "b"): 1.0}) is None
    assert (
        time_ratio(
            {OnMachine(0, "a"): 1.0, OnMachine(1, "a"): 1.0}, {OnMachine(0, "b"): 1.0, OnMachine(1, "b"): 1.0}
        )
        is None
    )


def test_on_one_machine_of_a_cluster_all_is_as_without_a_cluster() -> None:
    base, new = [10.0, 10.2, 10.1], [11.0, 11.3, 11.1]
    plain = time_ratio(dict(enumerate(base)), dict(enumerate(new)))
    named = [{OnMachine(number, "a"): value for number, value in enumerate(side)} for side in (base, new)]
    assert time_ratio(*named) == plain


def rows_of(ratios: Mapping[str, float]) -> list[Row]:
    return [
        timing(backend, number, machine, 10 * factor * ratio * (1 + 0.002 * number))
        for number, (machine, factor) in enumerate(MACHINES.items())
        for backend, ratio in ratios.items()
    ]


def test_a_table_compares_within_blocks_and_says_on_how_many_machines() -> None:
    rows = rows_of({"torch": 1.0, "im2col": 1.2, "fft": 1.5})
    table = comparison_table(rows)
    lines = {line.name: line for line in table.lines}
    assert lines["im2col"].speedup == pytest.approx(1 / 1.2)
    interval = lines["im2col"].speedup_interval
    assert interval is not None
    assert interval.low > 0.8
    (standing,) = standings(table)
    assert standing.verdicts == {"im2col": "behind", "fft": "behind"}
    assert machines_in(rows) == (
        "> **These rows come from 3 machines (1 with model of fast, 1 with model of slow, "
        "1 with model of middling).** Speeds are compared within blocks: one round on one machine."
    )


def test_a_backend_that_missed_the_slow_machine_does_not_look_fast() -> None:
    rows = [
        each
        for each in rows_of({"torch": 1.0, "im2col": 1.2})
        if (each.backend, each.node) != ("im2col", "slow")
    ]
    lines = {line.name: line for line in comparison_table(rows).lines}
    assert lines["im2col"].speedup == pytest.approx(1 / 1.2)


def test_rows_of_machines_that_share_no_blocks_are_called_so() -> None:
    rows = [timing("torch", 0, name, 1.0, block=None) for name in ("a", "b")]
    assert "speeds of different machines are compared" in machines_in(rows)
    assert machines_in(rows[:1]) == ""


def test_two_sides_of_one_run_on_several_machines_are_compared_within_blocks(tmp_path: Path) -> None:
    for side, ratio in (("base", 1.0), ("new", 1.2)):
        rows = [
            timing("im2col", number, machine, 10 * factor * ratio * (1 + 0.002 * number))
            for number, (machine, factor) in enumerate(MACHINES.items())
        ]
        (tmp_path / f"{side}.csv").write_text(header(Row) + "".join(map(to_line, rows)))
    (pair,) = compare(tmp_path / "base.csv", tmp_path / "new.csv").times
    assert pair.paired
    assert pair.verdict == "slower"
    assert pair.ratio == pytest.approx(1.2)


def test_runs_on_different_machines_are_not_compared(tmp_path: Path) -> None:
    for side in ("base", "new"):
        rows = [timing("im2col", number, f"{side}{number}", 10.0) for number in range(3)]
        (tmp_path / f"{side}.csv").write_text(header(Row) + "".join(map(to_line, rows)))
    with pytest.raises(NothingRan, match="unlike machine_id"):
        compare(tmp_path / "base.csv", tmp_path / "new.csv")
    (forced,) = compare(tmp_path / "base.csv", tmp_path / "new.csv", force=True).times
    assert not forced.paired
