"""Ratios that differ between kinds of machines are shown for each kind, and those that do not are not divided."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from convbench.registry import GateFailed
from convbench.results import compare
from convbench.results.analysis.display import summary_frame
from convbench.results.analysis.machine_kinds import ByKind, differing
from convbench.results.analysis.standings import comparison_table
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.formats import as_csv, as_markdown, as_table
from convbench.results.report.findings import comparison_findings
from convbench.results.schema import Row
from convbench.results.tables.comparison_table import table_markdown
from result_rows import LENET, row, write

MATTERS = math.log1p(0.03)
KINDS = {"EPYC": 1.0, "Xeon": 3.0}  # factors of all times
NOISE: Mapping[str, Callable[[random.Random], float]] = {  # of the logarithms of ratios
    "normal": lambda chance: chance.gauss(0, 0.03),
    "skewed": lambda chance: 0.05 * (chance.expovariate(1) - chance.expovariate(1)),
    "heavy": lambda chance: 0.07 * chance.gauss(0, 1) / math.sqrt(chance.gammavariate(1.5, 2) / 3),
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("lines", [1, 4, 30])
@pytest.mark.parametrize("blocks", [(2, 2), (3, 2), (3, 3), (6, 6), (2, 2, 2)])
def test_tables_of_equals_are_hardly_ever_divided(noise: str, lines: int, blocks: tuple[int, ...]) -> None:
    chance, divided, tables = random.Random(f"{noise} {lines} {blocks}"), 0, 200
    for _ in range(tables):
        table = [
            ByKind(
                line // 4,
                {str(kind): [NOISE[noise](chance) for _ in range(n)] for kind, n in enumerate(blocks)},
            )
            for line in range(lines)
        ]
        divided += any(differing(table, MATTERS))
    assert divided <= 0.03 * tables


@pytest.mark.parametrize("blocks", [(3, 3), (6, 6), (6, 2), (4, 4, 4)])
def test_a_kind_on_which_a_backend_is_slower_is_found(blocks: tuple[int, ...]) -> None:
    chance = random.Random(0)
    lines = [
        ByKind(
            "group",
            {
                str(kind): [chance.gauss(0.4 * (kind == line == 0), 0.02) for _ in range(n)]
                for kind, n in enumerate(blocks)
            },
        )
        for line in range(4)
    ]
    assert differing(lines, MATTERS) == [True, False, False, False]


def test_what_does_not_matter_divides_nothing_however_sure_it_is() -> None:
    chance = random.Random(0)
    logs = {kind: [chance.gauss(shift, 0.001) for _ in range(50)] for kind, shift in (("a", 0), ("b", 0.02))}
    assert differing([ByKind("group", logs)], MATTERS) == [False]
    assert differing([ByKind("group", logs)], math.log1p(0.01)) == [True]


def test_one_block_on_a_kind_says_nothing_of_it() -> None:
    assert differing([ByKind("group", {})], MATTERS) == [False]


def rows_of(ratios: Mapping[str, Mapping[str, float]], seed: int = 0, rounds: int = 8) -> list[Row]:
    """Rounds on two machines of each kind; `ratios` has that of each backend on each kind."""
    chance, rows = random.Random(seed), []
    for number in range(rounds):
        kind = list(KINDS)[number % 2]
        machine = f"{kind}-{number // 2 % 2}"
        for backend, on in ratios.items():
            step_ms = 10 * KINDS[kind] * on[kind] * math.exp(chance.gauss(0, 0.01))
            where: dict[str, Any] = {
                "node": machine,
                "machine_id": machine,
                "device_name": kind,
                "block": f"lenet/cpu/float32/b128/contiguous/eager/time{number}",
            }
            timing = {"kind": "time", "round": number, "step_ms_median": step_ms}
            rows.append(row(**(asdict(LENET) | {"backend": backend} | where | timing)))
    return rows


def everywhere(ratio: float) -> dict[str, float]:
    return dict.fromkeys(KINDS, ratio)


UNLIKE = {"EPYC": 0.8, "Xeon": 1.5}


def compared(directory: Path, on: Mapping[str, float], **more: float) -> Comparison:
    """Two sides of one run: `im2col` has become slower by `on`, and `fft` has not."""
    base, new = (
        write(
            directory / side / "results.csv",
            rows_of({"im2col": ratios, "fft": everywhere(2.0)}, seed=seed),
        )
        for side, seed, ratios in (("base", 1, everywhere(1.0)), ("new", 2, on))
    )
    return compare(base, new, **more)


def test_compare_shows_a_pair_for_each_kind_whose_ratios_differ(tmp_path: Path) -> None:
    comparison = compared(tmp_path, UNLIKE)
    found = {(pair.combination.backend, pair.machine_kind): pair for pair in comparison.times}
    assert set(found) == {("im2col", "EPYC"), ("im2col", "Xeon"), ("fft", "")}
    for kind, ratio in UNLIKE.items():
        pair = found["im2col", kind]
        assert pair.ratio == pytest.approx(ratio, rel=0.02)
        assert pair.base_processes == pair.new_processes == 4
        assert pair.verdict == ("slower" if ratio > 1 else "faster")
    assert found["fft", ""].verdict == "same"
    for side in ("base", "new"):
        assert f"{side} was measured on 4 machines (2 with EPYC, 2 with Xeon)" in comparison.remarks


def test_compare_divides_nothing_whose_ratios_are_alike(tmp_path: Path) -> None:
    comparison = compared(tmp_path, everywhere(1.3))
    assert [pair.machine_kind for pair in comparison.times] == ["", ""]
    assert "machine" not in as_markdown(comparison).partition("|\n")[0]
    assert "2 with EPYC" in as_table(comparison)


def test_what_divides_follows_the_smallest_effect_that_is_looked_for(tmp_path: Path) -> None:
    comparison = compared(tmp_path, UNLIKE, min_effect=0.99)
    assert [pair.machine_kind for pair in comparison.times] == ["", ""]


def test_every_format_names_the_kind_of_machine(tmp_path: Path) -> None:
    comparison = compared(tmp_path, UNLIKE)
    for text in (as_table(comparison), as_markdown(comparison)):
        assert "Xeon" in text
        assert "ratios that differ between kinds of machines" in " ".join(text.split())
    header, *lines = as_csv(comparison).splitlines()
    at = header.split(",").index("machine_kind")
    assert sorted(line.split(",")[at] for line in lines) == ["", "EPYC", "Xeon"]
    assert set(comparison.table()["machine_kind"]) == {"", "EPYC", "Xeon"}
    assert any("on Xeon" in said for said in comparison_findings(comparison))
    assert json.dumps(comparison.plot().to_dict()).count("on Xeon")


def test_a_gate_fails_for_one_kind_of_machine_alone(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"im2col.* on Xeon in new"):
        compared(tmp_path, {"EPYC": 0.6, "Xeon": 1.2}).gate(0.05)


def test_flags_of_a_kind_are_counted_on_that_kind(tmp_path: Path) -> None:
    base, new = rows_of({"im2col": everywhere(1.0)}, 1), rows_of({"im2col": UNLIKE}, 2)
    new = [replace(each, flags="busy") if each.device_name == "Xeon" else each for each in new]
    sides = [write(tmp_path / side / "results.csv", rows) for side, rows in (("base", base), ("new", new))]
    flags = {pair.machine_kind: pair.new_flags for pair in compare(*sides).times}
    assert flags == {"EPYC": {}, "Xeon": {"busy": 4}}


def test_a_table_of_a_run_has_one_for_each_kind_where_speeds_differ() -> None:
    ratios = {"torch": everywhere(1.0), "im2col": UNLIKE, "fft": everywhere(2.0)}
    rows = rows_of(ratios)
    nowhere = {"device_name": None, "machine_id": None}
    rows.append(row(kind="verify", status="unsupported", error="no", backend="fft", **nowhere))
    groups = {group.conditions.machine_kind: group for group in comparison_table(rows).groups}
    assert set(groups) == set(KINDS)
    for kind, group in groups.items():
        speeds = {line.name: line.speedup for line in group.lines}
        assert speeds["im2col"] == pytest.approx(1 / UNLIKE[kind], rel=0.02)
        assert speeds["fft"] == pytest.approx(1 / 2, rel=0.02)
        assert {line.processes for line in group.lines} == {4}
        assert group.conditions.title.endswith(f"on {kind}")
    text = table_markdown(rows)
    assert "4 machines (2 with EPYC, 2 with Xeon)" in text
    assert "each has a table" in text
    assert set(summary_frame(rows)["machine_kind"]) == set(KINDS)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.3])
def test_a_table_of_a_run_is_one_where_speeds_are_alike(ratio: float) -> None:
    ratios = {"torch": everywhere(1.0), "im2col": everywhere(ratio), "fft": everywhere(2.0)}
    (group,) = comparison_table(rows_of(ratios)).groups
    assert {line.processes for line in group.lines} == {8}
    assert "each has a table" not in table_markdown(rows_of(ratios))


def test_without_torch_the_first_backend_is_what_speeds_are_compared_with() -> None:
    rows = rows_of({"im2col": everywhere(1.0), "fft": UNLIKE})
    assert {group.conditions.machine_kind for group in comparison_table(rows).groups} == set(KINDS)
    without_times = [row(kind="verify", status="ok", backend="aaa", device_name="EPYC"), *rows]
    assert len(comparison_table(without_times).groups) == 2


def test_rows_of_no_cluster_are_never_divided() -> None:
    rows = [
        Row(**{**asdict(each), "block": None, "node": None})
        for each in rows_of({"torch": everywhere(1.0), "im2col": UNLIKE})
    ]
    (group,) = comparison_table(rows).groups
    assert group.conditions.machine_kind == ""
