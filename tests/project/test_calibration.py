"""The calibration of `compare`: what the docs say of it follows from the kept timings, and is good enough."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import calibrate_compare as calibration  # noqa: E402


def test_the_page_is_up_to_date() -> None:
    page = calibration.PAGE.read_text(encoding="utf-8")
    sections = "\n\n".join(map(calibration.section, calibration.STATES))
    assert calibration.refreshed(page, sections) == page, "run python scripts/calibrate_compare.py table"
    assert sections in page


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
