"""The calibration of `compare`: what the docs say of it follows from the kept timings, and is good enough."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import calibrate_compare as calibration  # noqa: E402

PAGE = calibration.PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    sections = "\n\n".join(map(calibration.section, calibration.STATES))
    assert calibration.refreshed(PAGE, sections) == PAGE, "run python scripts/calibrate_compare.py table"
    assert sections in PAGE


@pytest.mark.parametrize(("noise", "processes"), [("2 %, alike", 2), ("2 %, one backend 20 %", 2)])
def test_the_simulated_intervals_of_the_page_are_those_of_the_code(noise: str, processes: int) -> None:
    assert " | ".join(calibration.interval_row(noise, processes)) in PAGE


def test_the_simulated_gate_of_the_page_is_that_of_the_code() -> None:
    assert " | ".join(calibration.gate_row(0.02, 4)) in PAGE


def rows_of(first: str) -> list[list[str]]:
    """The rows of a table of the page whose first heading is that of a simulation, without units."""
    tables = [part.split("<!-- end -->")[0] for part in PAGE.split("table (")[1:]]
    table = next(each for each in tables if each.startswith(first))
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [[cell.removesuffix("%").strip() for cell in line] for line in lines[2:]]


def test_simulated_intervals_hold_the_truth_and_equals_raise_few_alarms() -> None:
    rows = rows_of("intervals")
    assert {int(row[1]) for row in rows} == {2, 3, 4, 8}
    assert all(float(row[2]) >= 95 - 0.8 for row in rows)  # of 4,000 intervals, three standard deviations
    assert all(float(row[3]) >= 93 - 3 for row in rows)  # of 500
    assert all(float(row[5]) <= 1 + 1.4 for row in rows)  # of 500 comparisons


def test_the_gate_passes_equals_as_often_as_theory_says_and_slower_ones_as_seldom() -> None:
    rows = rows_of("gate")
    assert {(row[0], int(row[1])) for row in rows} >= {(n, p) for n in ("2", "5") for p in (4, 8, 16)}
    for row in rows:
        processes = int(row[1])
        one, in_theory, many, many_in_theory, failed, slower, much_slower = map(float, row[2:])
        assert abs(one - in_theory) <= (1 if processes > 4 else 6)  # Welch's degrees of freedom are fewer
        assert abs(many - many_in_theory) <= (3 if processes > 4 else 8)
        assert failed <= 1 + 1.4
        assert slower <= 5 + 1.5  # of 2,000
        assert much_slower <= 5


@pytest.mark.parametrize("state", calibration.STATES)
@pytest.mark.parametrize("processes", [3, 6, 10, 16])
def test_equals_are_called_different_in_at_most_one_of_a_hundred(state: str, processes: int) -> None:
    rates = calibration.rates(calibration.read_rounds(state), processes, wanted=400)
    assert rates.comparisons >= 400
    assert rates.false_alarms <= 0.01


@pytest.mark.parametrize("processes", [6, 10, 16])
def test_ten_percent_are_found_where_the_machine_is_left_alone(processes: int) -> None:
    rates = calibration.rates(calibration.read_rounds("quiet"), processes, wanted=400)
    assert rates.slower_10["more"] >= 0.95 * rates.comparisons


@pytest.mark.parametrize("state", calibration.STATES)
@pytest.mark.parametrize("processes", [3, 6, 10, 16])
def test_what_cannot_be_told_is_unclear_and_hardly_ever_wrong(state: str, processes: int) -> None:
    rates = calibration.rates(calibration.read_rounds(state), processes, wanted=400)
    for counts in (rates.slower_5, rates.slower_10):
        assert counts["less"] + counts["same"] <= 0.01 * rates.comparisons


def test_the_slow_ones_are_really_slower() -> None:
    for rounds in calibration.read_rounds("quiet"):
        medians = [sorted(row[at] / row[0] for row in rounds)[len(rounds) // 2] for at in (1, 2, 3)]
        assert medians == pytest.approx([1.0, 1.05, 1.10], abs=0.015)
