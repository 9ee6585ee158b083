"""Comparing results: which pairs are made, which are refused, and what is said of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convbench.registry import GateFailed, NothingRan, UsageError
from convbench.results import Row, compare, read_results
from convbench.results.analysis.contents import read_contents
from convbench.results.comparison.formats import as_json, as_markdown, as_table
from convbench.results.comparison.sides import read_side
from convbench.results.report.page import comparison_html
from convbench.results.storage.store import RunStore
from result_rows import BASE, LENET, QUIET, SLOWER, comparing, row, timed, trained, write


@pytest.fixture
def against(tmp_path: Path) -> Any:
    return comparing(tmp_path)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (SLOWER, "slower"),
        ([8.0, 8.1, 7.9], "faster"),
        ([10.0, 10.01, 9.99], "same"),
        ([9.0, 13.0, 11.0], "unclear"),
    ],
)
def test_each_verdict(against: Any, new: list[float], verdict: str) -> None:
    base = [10.0, 10.01, 9.99] if verdict == "same" else BASE
    pair = against(timed(base), timed(new)).times[0]
    assert pair.verdict == verdict
    assert pair.low < pair.ratio < pair.high
    assert pair.ratio == pytest.approx(pair.new_ms / pair.base_ms)
    assert (pair.base_processes, pair.new_processes) == (3, 3)
    assert pair.detectable > 1


def test_files_runs_and_tables_are_compared_alike(tmp_path: Path) -> None:
    base = write(tmp_path / "base" / "results.csv", timed(BASE))
    new = write(tmp_path / "new" / "results.csv", timed(SLOWER))
    expected = compare(base, new).times
    assert compare(str(base.parent), new.parent).times == expected
    frames = compare(read_results(base), read_results(new)).times
    assert [pair.ratio for pair in frames] == pytest.approx([pair.ratio for pair in expected])
    assert frames[0].combination == LENET


def test_names_of_files_are_short_where_that_is_distinct(tmp_path: Path) -> None:
    paths = [write(tmp_path / side / "a" / "results.csv", timed(BASE)) for side in ("x", "y")]
    other = write(tmp_path / "new.csv", timed(BASE))
    assert compare(paths[0], other).files == ("a", "new.csv")
    assert compare(*paths).files == tuple(map(str, paths))
    assert compare(paths[0], paths[0]).files == ("a (1)", "a (2)")


def test_combinations_of_one_side_are_listed_for_both(against: Any) -> None:
    found = against([*timed(BASE), *timed(BASE, backend="old")], [*timed(BASE), *timed(BASE, backend="new")])
    assert [(left.combination.backend, left.reason, left.lost) for left in found.left_out] == [
        ("old", "only in run0", False),
        ("new", "only in run1", False),
    ]
    assert len(found.times) == 1


@pytest.mark.parametrize("before", [{}, {"fused": 0}])
def test_fused_rows_are_not_paired_with_others(against: Any, before: dict[str, int]) -> None:
    """A file of a version that could not fuse says nothing, and means the same."""
    against(timed(BASE, **before), timed(SLOWER, fused=0))
    against(timed(BASE, fused=1), timed(SLOWER, fused=1))
    with pytest.raises(NothingRan, match=r"unlike fused \(0 and 1\) \(--force"):
        against(timed(BASE, **before), timed(SLOWER, fused=1))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("machine_id", "another"),
        ("device_name", "Another processor"),
        ("dataset", "fashion-mnist-sample"),
        ("recipe", "lr=0.2 epochs=10"),
        ("torch_version", "2.12.0+cpu"),
        ("threads", 4),
        ("machine_id", None),
    ],
)
def test_unlike_conditions_are_named_and_refused_unless_forced(
    against: Any, column: str, value: object
) -> None:
    sides = timed(BASE), timed(SLOWER, **{column: value})
    other = re.escape(str(value or "unknown"))
    with pytest.raises(NothingRan, match=rf"unlike {column} \(.* and {other}\) \(--force"):
        against(*sides)
    pair = against(*sides, force=True).times[0]
    assert pair.verdict == "slower"
    assert pair.note.startswith(f"unlike {column}")


def test_one_unlike_pair_does_not_hide_the_others(against: Any) -> None:
    mine = {"backend": "mine"}
    found = against([*timed(BASE), *timed(BASE, **mine)], [*timed(BASE), *timed(BASE, **mine, threads=4)])
    assert [pair.combination.backend for pair in found.times] == ["im2col"]
    assert [left.reason for left in found.left_out] == ["unlike threads (2 and 4)"]


@pytest.mark.parametrize(
    ("base", "new", "shares"),
    [(1.0, 0.0, "100 % and 0 %"), (0.25, 0.75, "25 % and 75 %"), (1.0, 0.99999, "100 % and 99.999 %")],
)
def test_unlike_shares_served_by_the_backend_are_named(
    against: Any, base: float, new: float, shares: str
) -> None:
    pair = against(timed(BASE, served_flops_fraction=base), timed(SLOWER, served_flops_fraction=new)).times[0]
    assert pair.note == f"unlike share of the FLOPs served by the backend ({shares})"
    assert (pair.base_served, pair.new_served) == (base, new)


@pytest.mark.parametrize("share", [None, 0.25, float("inf")])
def test_a_side_that_does_not_tell_what_was_served_is_not_unlike(against: Any, share: float | None) -> None:
    pair = against(timed(BASE, served_flops_fraction=0.25), timed(BASE, served_flops_fraction=share)).times[0]
    assert (pair.note, pair.served_less) == ("", False)


def test_the_smallest_share_of_any_process_counts(against: Any) -> None:
    mixed = [
        row(round=index, step_ms_median=10.0, served_flops_fraction=share)
        for index, share in enumerate((1, 0.5, 1))
    ]
    pair = against(timed(BASE, served_flops_fraction=1.0), mixed).times[0]
    assert (pair.base_served, pair.new_served, pair.served_less) == (1, 0.5, True)


@pytest.mark.parametrize(
    ("base", "new", "note"),
    [
        (
            ["", "", ""],
            ["busy", "busy drifting", ""],
            "flagged unlike: busy in 0 of 3 processes of the base and 2 of 3 of the new, "
            "drifting in 0 of 3 processes of the base and 1 of 3 of the new",
        ),
        (
            ["busy", "", ""],
            ["", "", "busy"],
            "flagged alike: busy in 1 of 3 processes of the base and 1 of 3 of the new",
        ),
        (["", "", ""], ["", "", ""], ""),
    ],
)
def test_flagged_processes_are_counted_on_both_sides(
    against: Any, base: list[str], new: list[str], note: str
) -> None:
    sides = [
        [row(round=at, step_ms_median=time, flags=flags[at] or None) for at, time in enumerate(BASE)]
        for flags in (base, new)
    ]
    pair = against(*sides).times[0]
    assert pair.note == note
    assert pair.new_flags.get("busy", 0) == sum("busy" in flags for flags in new)
    assert pair.base_flags.get("busy", 0) == sum("busy" in flags for flags in base)


@pytest.mark.parametrize(
    ("run_id", "start", "said"),
    [
        ("other", "2026-01-01T12:45:00+00:00", "measured 40 minutes apart"),
        ("run", "2026-01-01T12:45:00+00:00", "measured 40 minutes apart"),  # directories may have one name
        ("other", "2026-01-03T12:05:00+00:00", "measured 2 days apart"),
        ("other", "2026-01-01T12:05:20+00:00", "measured less than a minute apart"),
        ("other", "2026-01-01T12:03:00+00:00", "measured at the same time by separate runs"),
        ("run", "2026-01-01T12:03:00+00:00", None),
        ("other", None, None),
    ],
)
def test_sides_that_are_not_interleaved_are_told_once(
    against: Any, run_id: str, start: str | None, said: str | None
) -> None:
    base = [
        row(round=at, backend=backend, step_ms_median=time, started_at=f"2026-01-01T12:0{at}:00+00:00")
        for backend in ("im2col", "fft")
        for at, time in enumerate([*BASE, *BASE])
    ]
    new = [
        row(round=at, backend=backend, step_ms_median=time, started_at=start, run_id=run_id)
        for backend in ("im2col", "fft")
        for at, time in enumerate([*BASE, *BASE])
    ]
    found = against(base, new)
    assert found.remarks == ((f"run1 and run0 are not interleaved: {said}",) if said else ())
    assert against(new, base).remarks == found.remarks
    assert [pair.note for pair in found.times] == ["", ""]
    for text in (as_table(found), as_markdown(found), as_json(found), comparison_html(found)):
        assert text.count("not interleaved") == len(found.remarks)


def test_a_side_of_two_machines_is_like_none(against: Any) -> None:
    mixed = [*timed(BASE), *timed(BASE, run_id="other", machine_id="another")]
    with pytest.raises(NothingRan, match=r"unlike machine_id \(0123456789ab or another and"):
        against(mixed, mixed)


def test_what_a_timing_process_does_not_know_is_no_difference(against: Any) -> None:
    both = [*timed(BASE, dataset=None, train_images=None), *trained([0.7])]
    assert against(both, trained([0.7])).left_out == ()


def test_an_older_file_without_a_recipe_is_compared(against: Any) -> None:
    assert against(timed(BASE, recipe=None), timed(BASE)).times[0].note == ""


def test_the_last_row_of_a_process_counts(against: Any) -> None:
    again = [row(status="crashed"), *timed([50.0, 50.0, 50.0]), *timed(BASE)]
    pair = against(again, timed(BASE)).times[0]
    assert pair.base_processes == 3
    assert pair.base_ms == pytest.approx(10, rel=0.01)


def test_runs_put_into_one_file_are_more_processes(against: Any) -> None:
    assert against([*timed(BASE), *timed(BASE, run_id="second")], timed(BASE)).times[0].base_processes == 6


def test_one_process_a_side_is_said_to_rest_on_an_assumption(against: Any) -> None:
    pair = against(timed([10.0]), timed([10.0])).times[0]
    assert pair.verdict == "unclear"
    assert "one process on a side" in pair.note


def test_rounds_of_one_run_are_set_against_each_other(against: Any) -> None:
    """A machine that gets slower and slower: both sides lie apart by 4 %, and each by far more within itself."""
    drift = [10.0 * 1.3**number for number in range(6)]
    new = [
        time * factor for time, factor in zip(drift, (1.04, 1.041, 1.039, 1.04, 1.041, 1.039), strict=True)
    ]
    pair = against(timed(drift), timed(new)).times[0]
    assert (pair.verdict, pair.paired) == ("slower", True)
    assert pair.ratio == pytest.approx(1.04, rel=1e-3)
    assert pair.ratio == pytest.approx(pair.new_ms / pair.base_ms)
    shuffled = against(timed(drift), reversed(timed(new))).times[0]
    assert (shuffled.ratio, shuffled.low) == pytest.approx((pair.ratio, pair.low))


@pytest.mark.parametrize(
    ("rounds", "changed"), [(5, {}), (6, {"run_id": "another"})], ids=["too few", "of two runs"]
)
def test_others_are_not(against: Any, rounds: int, changed: dict[str, Any]) -> None:
    drift = [10.0 * 1.3**number for number in range(rounds)]
    pair = against(timed(drift), timed([1.04 * time for time in drift], **changed)).times[0]
    assert (pair.verdict, pair.paired) == ("unclear", False)


def test_files_of_pytest_benchmark_took_no_turns(tmp_path: Path) -> None:
    """Each file is a run of its own, however many there are on either side."""
    sides = []
    for side in ("base", "new"):
        (tmp_path / side).mkdir()
        for number in range(6):
            path = tmp_path / side / f"{number}.json"
            path.write_text(
                json.dumps({"benchmarks": [{"name": "a", "stats": {"median": 0.01 + number / 1000}}]})
            )
        sides.append(tmp_path / side)
    (pair,) = compare(*sides, force=True).times
    assert (pair.base_processes, pair.new_processes, pair.paired) == (6, 6, False)


def test_budgeted_rows_are_compared(against: Any) -> None:
    assert against(timed(BASE, status="budget"), timed(SLOWER, status="budget")).times[0].verdict == "slower"


def test_a_round_that_crashed_is_noted(against: Any) -> None:
    crashed = row(round=2, status="crashed", error="signal 11")
    pair = against(timed(BASE), [*timed(BASE[:2]), crashed]).times[0]
    assert pair.new_processes == 2
    assert pair.note == "in run1: time crashed: signal 11"


@pytest.mark.parametrize("time", [0.0, -1.0, float("inf")])
def test_a_time_that_is_none_is_refused(against: Any, time: float) -> None:
    place = r"run0/results\.csv, line 3: "
    with pytest.raises(UsageError, match=place + r"step_ms_median is .*; a time is a number above zero"):
        against(timed([10.0, time]), timed(BASE))


@pytest.mark.parametrize("accuracy", [-0.1, 1.5, float("inf")])
def test_an_accuracy_that_is_no_share_is_refused(against: Any, accuracy: float) -> None:
    with pytest.raises(UsageError, match=r"val_accuracy is .*; an accuracy is a share from 0 to 1"):
        against(trained([0.5, accuracy]), trained([0.5, 0.6]))


@pytest.mark.parametrize("kind", ["verify", "train"])
def test_what_was_found_wrong_has_no_figures_however_much_was_measured(against: Any, kind: str) -> None:
    wrong = row(kind=kind, status="incorrect", error="off by one")
    mine = {"backend": "mine"}
    found = against([*timed(QUIET), *timed(QUIET, **mine)], [*timed(QUIET), *timed(QUIET, **mine), wrong])
    assert [pair.combination.backend for pair in found.times] == ["mine"]
    with pytest.raises(GateFailed, match=f"lenet/im2col/.* in run1: {kind} incorrect: off by one"):
        found.gate(0.05)
    again = [wrong, row(kind=kind, val_accuracy=0.7), *timed(QUIET)]  # the last row of a process counts
    assert len(against(timed(QUIET), again).times) == 1


def test_rows_that_failed_are_no_measurement_even_with_a_time(against: Any) -> None:
    with pytest.raises(NothingRan, match="of 1 combination 1 is in run1: time incorrect: wrong"):
        against(timed(BASE), timed(BASE, status="incorrect", error="wrong"))


@pytest.mark.parametrize("sides", [([], []), ([], timed(BASE)), (timed(BASE), [])])
def test_nothing_to_compare_is_never_a_success(against: Any, sides: tuple[list[Row], list[Row]]) -> None:
    with pytest.raises(NothingRan, match="nothing could be compared"):
        against(*sides)


def test_runs_without_a_common_combination_are_told_in_what_they_differ(against: Any) -> None:
    words = r"they differ in architecture \(lenet; vgg\), dtype \(float32; float64\)$"
    with pytest.raises(NothingRan, match=words):
        against(
            timed(BASE, architecture="lenet", dtype="float32"),
            timed(BASE, architecture="vgg", dtype="float64"),
        )


def test_verification_alone_is_nothing_to_compare(against: Any) -> None:
    verified = [row(kind="verify")]
    with pytest.raises(NothingRan, match="not measured on both sides"):
        against(verified, verified)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_smallest_effect_that_is_no_share_is_refused(against: Any, share: float) -> None:
    with pytest.raises(UsageError, match="a share between 0 and 1"):
        against(timed(BASE), timed(BASE), min_effect=share)


# Accuracy


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([0.801, 0.799, 0.80], "higher"),
        ([0.601, 0.599, 0.60], "lower"),
        ([0.701, 0.699, 0.70], "same"),
        ([0.65, 0.75, 0.72], "unclear"),
    ],
)
def test_accuracy_is_judged_over_seeds(against: Any, new: list[float], verdict: str) -> None:
    found = against(trained([0.70, 0.701, 0.699]), trained(new))
    pair = found.accuracies[0]
    assert pair.verdict == verdict
    assert pair.low is not None
    assert pair.high is not None
    assert pair.low < pair.change < pair.high
    assert (pair.base_seeds, pair.new_seeds) == (3, 3)
    assert found.times == ()


def test_one_seed_shows_nothing_of_accuracy(against: Any) -> None:
    pair = against(trained([0.9]), trained([0.1])).accuracies[0]
    assert (pair.verdict, pair.low, pair.detectable) == ("unclear", None, None)
    assert pair.change == pytest.approx(-0.8)
    assert "one seed" in pair.note


def test_trainings_of_unlike_length_are_not_compared_in_accuracy(against: Any) -> None:
    pair = against(
        trained([0.9, 0.9, 0.9]), trained([0.1, 0.1, 0.1], epochs=0.4, status="budget")
    ).accuracies[0]
    assert pair.verdict == "unclear"
    assert "trained for 10 and 0.4 epochs" in pair.note


# History


def test_more_than_two_files_are_a_history(against: Any) -> None:
    sides = [timed([time * level for time in BASE]) for level in (1, 1.1, 1.21, 1.331)]
    found = against(*sides)
    trend = found.trends[0]
    assert trend.verdict == "slower"
    assert trend.change == pytest.approx(1.331)
    assert [round(time or 0, 1) for time in trend.step_ms] == [10.0, 11.0, 12.1, 13.3]
    assert [pair.file for pair in found.times] == ["run1", "run2", "run3"]


def test_a_history_says_where_its_level_changed(against: Any) -> None:
    levels = (1, 1.01, 0.99, 1.2, 1.21, 1.19, 1.0, 1.01)
    found = against(*(timed([time * level for time in BASE]) for level in levels))
    (trend,) = found.trends
    assert [(change.file, round(change.ratio, 1)) for change in trend.changes] == [
        ("run3", 1.2),
        ("run6", 0.8),
    ]
    steady = against(*(timed([time * level for time in BASE]) for level in (1, 1.01, 0.99, 1, 1.01, 1)))
    assert steady.trends[0].changes == ()


def test_a_history_without_a_direction_is_not_called_one(against: Any) -> None:
    sides = [timed([time * level for time in BASE]) for level in (1, 1.2, 0.9, 1.1)]
    assert against(*sides).trends[0].verdict == "unclear"


def test_a_history_has_gaps(against: Any) -> None:
    trend = against(timed(BASE), timed(SLOWER), timed(BASE, backend="mine")).trends[0]
    assert trend.step_ms[2] is None
    assert trend.change == pytest.approx(1.2, rel=1e-3)
    assert trend.verdict == "unclear"  # two points are no trend
    assert trend.low is None


def test_when_a_side_was_measured_is_told_by_what_was_measured(tmp_path: Path) -> None:
    """A row of a process that the total budget left out carries the time at which that was decided."""
    late = row(status="budget", step_ms_median=None, steps=None, started_at="2027-01-01T00:00:00+00:00")
    rows = timed([10.0, 10.1], started_at="2026-01-01T00:00:00+00:00")
    side = read_side(write(tmp_path / "results.csv", [*rows, replace(late, round=2)]), "base")
    assert side.period is not None
    assert {when.year for when in side.period} == {2026}


# One method for intervals


@pytest.mark.parametrize("processes", [2, 3, 5, 8])
def test_the_table_of_a_run_and_compare_give_the_same_interval(
    against: Any, tmp_path: Path, processes: int
) -> None:
    random = np.random.default_rng(processes)
    drift = random.lognormal(0, 0.1, processes)
    times = {
        name: (ms * drift * random.lognormal(0, 0.02, processes)).tolist()
        for name, ms in (("torch", 10), ("im2col", 14))
    }
    sides = {name: timed(step_ms, backend=name) for name, step_ms in times.items()}
    write(tmp_path / "run" / "results.csv", [row for rows in sides.values() for row in rows])
    contents = read_contents(tmp_path / "run")
    (line,) = (each for each in contents.table.groups[0].lines if each.name == "im2col")
    # the same rows, as if each backend had been measured by a run of its own
    found = against(*([replace(row, backend="mine") for row in sides[name]] for name in ("im2col", "torch")))
    (pair,) = found.times
    assert pair.paired == (processes >= 6)
    assert line.speedup_interval == pytest.approx((pair.ratio, pair.low, pair.high), rel=1e-6)
    assert line.speedup == pytest.approx(pair.ratio, rel=1e-6)


def test_compare_leaves_out_what_ran_beside_others_on_one_side(tmp_path: Path) -> None:
    for name, devices in (("alone", 0), ("old", None), ("beside", 1)):
        with RunStore.create(tmp_path / name, exact=True) as store:
            store.append(row(step_ms_median=2.0, concurrent_devices=devices))
    assert compare(tmp_path / "alone", tmp_path / "old").times
    forced = compare(tmp_path / "old", tmp_path / "beside", force=True)
    assert "unlike concurrent_devices (0 and 1)" in forced.times[0].note
