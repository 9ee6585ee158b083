"""The order of a run's processes, and which of them a resumed run can skip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convbench.registry import Recipe
from convbench.results.schema import Combination
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Budget, Suite, Timing
from convbench.suites.runner.schedule import Task, enough, left_alone, schedule, still_valid
from result_rows import row

SUITE = Suite(name="some", timing=Timing(rounds=4, threads=1))
PLANNED = [
    Planned(Combination("tiny", name, "cpu", "float32", 16, "contiguous", "eager", 0), Recipe())
    for name in "abcdefgh"
]


def tasks(
    suite: Suite = SUITE,
    planned: list[Planned] = PLANNED,
    seed: str = "run",
    version: str = "1",
    time: bool = True,
    train: bool = True,
) -> list[Task]:
    return schedule(suite, planned, lambda combination: {"version": version}, seed, time=time, train=train)


def slots(of: list[Task]) -> list[tuple[str, int, str]]:
    return [(task.kind, task.round, task.combination.backend) for task in of]


def test_verifications_are_first_then_rounds_then_trainings() -> None:
    kinds = [(task.kind, task.round) for task in tasks()]
    expected = [("verify", 0)] * 8 + [("time", number) for number in range(4) for _ in "abcdefgh"]
    assert kinds == expected + [("train", 0)] * 8
    assert [task.order for task in tasks()] == list(range(48))


def test_every_round_has_every_combination_in_an_order_of_its_own() -> None:
    orders = [
        tuple(task.combination.backend for task in tasks() if (task.kind, task.round) == ("time", number))
        for number in range(4)
    ]
    assert all(sorted(order) == list("abcdefgh") for order in orders)
    assert len(set(orders)) == 4  # by chance the same once in 10,000 seeds; this seed is fixed


def test_the_order_is_that_of_the_run_and_can_be_had_again() -> None:
    assert slots(tasks(seed="a")) == slots(tasks(seed="a")) != slots(tasks(seed="b"))


def test_kinds_can_be_left_out() -> None:
    assert {task.kind for task in tasks(time=False)} == {"verify", "train"}
    assert {task.kind for task in tasks(train=False)} == {"verify", "time"}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"version": "2"}, {"verify", "time", "train"}),
        ({"suite": replace(SUITE, timing=Timing(rounds=4, threads=2))}, {"verify", "time", "train"}),
        ({"suite": replace(SUITE, timing=Timing(rounds=4, threads=1, steps=9))}, {"time"}),
        ({"suite": replace(SUITE, timing=Timing(rounds=4, threads=1, precision=0.5))}, {"time"}),
        ({"suite": replace(SUITE, timing=Timing(rounds=4, threads=1, max_rounds=4))}, set()),
        ({"suite": replace(SUITE, budget=Budget(train_seconds=1.0))}, {"train"}),
        ({"planned": [replace(PLANNED[0], recipe=Recipe(lr=0.2))]}, {"verify", "time", "train"}),
        ({"suite": replace(SUITE, fuse=True)}, {"verify", "time", "train"}),
        ({"suite": replace(SUITE, description="reworded")}, set()),
        ({"suite": replace(SUITE, budget=Budget(timeout_seconds=1.0))}, set()),
    ],
)
def test_a_key_changes_with_what_the_result_depends_on(change: dict[str, Any], kinds: set[str]) -> None:
    before = {slot: task.key for slot, task in zip(slots(tasks()), tasks(), strict=True)}
    changed = tasks(**change)
    assert {
        task.kind for task, slot in zip(changed, slots(changed), strict=True) if task.key != before[slot]
    } == kinds


def test_rounds_beyond_the_least_number_are_optional_and_come_before_the_trainings() -> None:
    more = tasks(suite=replace(SUITE, timing=Timing(rounds=2, max_rounds=4, threads=1)))
    assert slots(more) == slots(tasks())  # as if four were asked for, in the same orders
    assert {task.round for task in more if task.optional} == {2, 3}
    assert {task.kind for task in more if task.optional} == {"time"}
    assert not any(task.optional for task in tasks())


def test_rounds_are_enough_when_their_interval_is_tight_or_one_has_failed() -> None:
    tight = [row(round=number, step_ms_median=10 + 0.01 * number) for number in range(3)]
    wide = [row(round=number, step_ms_median=10 + number) for number in range(3)]
    assert enough(tight, 0.05)
    assert not enough(wide, 0.05)
    assert not enough(tight[:1], 0.05)  # one process has no interval
    assert not enough([], 0.05)
    assert enough([*wide, row(round=3, status="crashed")], 0.05)


def rows_of(of: list[Task], **values: Any) -> list[Any]:
    return [
        row(
            **{
                "kind": task.kind,
                "round": task.round,
                "combination_key": task.key,
                **vars(task.combination),
                **values,
            }
        )
        for task in of
    ]


def test_measured_rows_of_the_same_key_are_valid_and_failures_are_tried_anew() -> None:
    wanted = tasks()
    assert still_valid(rows_of(wanted), wanted) == rows_of(wanted)
    cut = rows_of(wanted, status="budget", steps=3)
    assert still_valid(cut, wanted) == cut
    assert still_valid(rows_of(wanted, status="budget"), wanted) == []  # left out: there are no figures
    for status in (
        "error",
        "timeout",
        "crashed",
        "oom",
        "incorrect",
        "diverged",
        "unavailable",
        "unsupported",
    ):
        assert still_valid(rows_of(wanted, status=status), wanted) == []
    assert still_valid(rows_of(wanted, combination_key="other"), wanted) == []


def test_rows_that_a_run_is_not_about_are_left_alone() -> None:
    everything = rows_of(tasks())
    only_a = tasks(planned=PLANNED[:1], train=False)
    left = left_alone(everything, only_a)
    assert [entry for entry in everything if entry not in left] == [
        entry for entry in everything if entry.backend == "a" and entry.kind != "train"
    ]
