"""What a run with a total budget does next, on a fake clock: nothing here depends on this machine's speed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from convbench.registry import Problem, Recipe
from convbench.results.schema import Combination, Row
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Budget, Suite, Timing
from convbench.suites.runner.agenda import GRACE_SECONDS, PAGES_SECONDS, Agenda, slot
from convbench.suites.runner.forecast import Forecast, before_anything
from convbench.suites.runner.schedule import Task, schedule, still_valid
from result_rows import row

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
STEPS = 469  # of an epoch at a batch of 128
LENET = {"torch": 0.010, "native": 0.005, "im2col": 0.020, "loops": 0.600}  # seconds a step
CHECK_SECONDS = 1.0  # of every process, beside its steps


def suite_of(total: float | None = 280.0, train_seconds: float = 240.0, **timing: Any) -> Suite:
    usual = {"rounds": 3, "warmup_steps": 5, "steps": 30, "threads": 1}
    return Suite(
        name="some",
        budget=Budget(train_seconds=train_seconds, total_seconds=total),
        timing=Timing(**(usual | timing)),
    )


def planned_of(*backends: str, seeds: int = 1, **options: Any) -> list[Planned]:
    return [
        Planned(
            Combination("lenet", name, "cpu", "float32", 128, "contiguous", "eager", seed),
            Recipe(),
            **options,
        )
        for name in backends
        for seed in range(seeds)
    ]


@dataclass
class World:
    """A machine on which a step of each backend takes exactly so long, and a clock that only it moves."""

    steps: Mapping[str, float]
    scatter: Mapping[str, float] = field(default_factory=dict)  # of a backend's rounds
    slower_training: float = 1.0
    now: float = 1000.0
    rows: list[Row] = field(default_factory=list)
    timed: dict[Combination, list[Row]] = field(default_factory=lambda: defaultdict(list))
    wrong: frozenset[str] = frozenset()

    def run(self, suite: Suite, planned: list[Planned], kept: list[Row] = [], **kinds: bool) -> Agenda:  # noqa: B006
        """A run to its end; what was left out is in the rows too."""
        kinds = {"time": True, "train": True} | kinds
        tasks = schedule(suite, planned, lambda combination: "same", "seed", **kinds)
        valid = still_valid(kept, tasks)
        forecast = Forecast(suite, TRAIN_IMAGES, TEST_IMAGES)
        forecast.learn(valid)
        self.rows = list(valid)
        for each in valid:
            if each.kind == "time":
                self.timed[each.combination].append(each)
        began, spent = self.now, sum(each.process_seconds or 0.0 for each in valid)
        total = suite.budget.total_seconds
        agenda = Agenda(
            suite,
            tasks,
            forecast,
            blocked=lambda task: task.planned.obstacle is not None,
            timed=lambda combination: self.timed[combination],
            done=[(each.kind, each.round, each.combination) for each in valid],
            now=lambda: self.now,
            **({} if total is None else {"deadline": began + total - spent}),
        )
        while (task := agenda.next()) is not None:
            self.take(task, suite, forecast)
        for task, reason in agenda.left_out():
            self.rows.append(self.row(task, status="budget", notes=reason))
        return agenda

    def row(self, task: Task, **values: Any) -> Row:
        key = task.cut_key if values["status"] == "budget" and task.share is not None else task.key
        return row(
            **vars(task.combination),
            kind=task.kind,
            round=task.round,
            order=task.order,
            combination_key=key,
            **values,
        )

    def take(self, task: Task, suite: Suite, forecast: Forecast) -> None:
        """Do what a worker does with a task, in no time but that of the clock here."""
        step = self.steps[task.combination.backend] * (
            1 + task.round * self.scatter.get(task.combination.backend, 0.0)
        )
        values: dict[str, Any] = {"status": "ok"}
        took = CHECK_SECONDS + 3 * step
        if task.kind == "time":
            limit = task.share if task.share is not None else suite.timing.max_seconds
            count = max(1, min(suite.timing.steps, int(limit / step)))
            values |= {"steps": count, "step_ms_median": 1000 * step}
            took += step * (count + max(1, min(suite.timing.warmup_steps, int(limit / step))))
        elif task.kind == "train":
            step *= self.slower_training
            whole = STEPS * task.planned.recipe.epochs
            limit = task.share if task.share is not None else suite.budget.train_seconds
            count = min(whole, int(limit / step) + 1)
            values |= {
                "status": "ok" if count == whole else "budget",
                "steps": count,
                "epochs": count / STEPS,
                "train_seconds": count * step,
                "val_accuracy": 0.5,
            }
            took += count * step * (1 + 0.3 * TEST_IMAGES / TRAIN_IMAGES)
        self.now += took
        made = self.row(task, process_seconds=took, **values)
        self.rows.append(made)
        if task.kind == "time":
            self.timed[made.combination].append(made)
        forecast.learn([made])

    def of(self, kind: str, backend: str) -> list[Row]:
        return [each for each in self.rows if (each.kind, each.backend) == (kind, backend)]

    def order(self, kind: str) -> list[str]:
        return [each.backend for each in self.rows if each.kind == kind and not each.left_out]


def test_the_fast_finish_the_slow_are_known_as_slow_and_it_ends_in_time() -> None:
    world = World(LENET)
    began = world.now
    world.run(suite_of(), planned_of(*LENET))
    assert world.now - began <= 280 - PAGES_SECONDS
    for backend in ("torch", "native", "im2col"):
        (trained,) = world.of("train", backend)
        assert (trained.status, trained.epochs) == ("ok", 10)
    assert world.order("train") == ["torch", "native", "im2col"]  # the baseline first, then the shortest
    (left,) = world.of("train", "loops")
    assert left.left_out
    assert left.notes is not None
    assert left.notes.startswith("training left out: 10 epochs would take 50 min, and ")
    for backend in LENET:
        timed = world.of("time", backend)
        assert sorted(each.round for each in timed) == [0, 1, 2]
        assert all(each.status == "ok" and each.steps for each in timed)
    assert all((each.steps or 0) < 30 for each in world.of("time", "loops"))
    assert all(each.steps == 30 for each in world.of("time", "torch"))


def test_it_verifies_first_then_one_round_of_everything_then_trains_then_goes_on() -> None:
    world = World(LENET)
    world.run(suite_of(), planned_of(*LENET))
    kinds = [(each.kind, each.round) for each in world.rows if not each.left_out]
    assert kinds[:4] == [("verify", 0)] * 4
    assert world.order("verify")[0] == "torch"
    assert kinds[4:8] == [("time", 0)] * 4
    assert kinds[8:11] == [("train", 0)] * 3
    assert kinds[11:] == [("time", 1)] * 4 + [("time", 2)] * 4
    orders = [
        [each.backend for each in world.rows if (each.kind, each.round) == ("time", number)]
        for number in range(3)
    ]
    assert all(sorted(order) == sorted(LENET) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [each.order for each in world.rows] == list(range(len(world.rows)))


def test_every_planned_process_has_a_row_however_little_time_there_is() -> None:
    planned = planned_of(*LENET)
    for total in (0.1, 5, 9, 20, 40, 80, 160, 320, 5000):
        world = World(LENET)
        began = world.now
        suite = suite_of(total)
        world.run(suite, planned)
        slots = [(each.kind, each.round, each.backend) for each in world.rows]
        assert len(slots) == len(set(slots)) == len(planned) * 5, total
        slowest = 3 * CHECK_SECONDS + 50 * max(LENET.values())
        assert world.now - began <= max(total, 0) + slowest, total
        for each in world.rows:
            assert each.left_out == bool(each.notes), each
    assert not [each for each in world.rows if each.left_out]  # with time for it, even loops finishes


def test_without_verification_nothing_is_measured_and_the_reason_is_that() -> None:
    world = World(LENET)
    world.run(suite_of(total=PAGES_SECONDS + 0.5), planned_of(*LENET))
    measured = [each for each in world.rows if not each.left_out]
    assert [(each.kind, each.backend) for each in measured] == [("verify", "torch")]
    reasons = {each.notes for each in world.rows if each.backend == "loops"}
    assert reasons == {"verification left out: the total budget of 4 s was spent"}


def test_where_verifications_would_take_all_of_the_time_what_is_verified_is_timed_first() -> None:
    """A step takes three seconds, so that a verification takes ten and a round sixteen."""
    backends = ["a", "b", "c", "d", "e", "f", "g", "h", "torch"]
    slow = World(dict.fromkeys(backends, 3.0))
    slow.run(suite_of(total=150), planned_of(*backends))
    verified = [each.backend for each in slow.rows if each.kind == "verify" and not each.left_out]
    assert verified == ["torch", "a", "b", "c", "d", "e"]
    for backend in backends:
        first = next(each for each in slow.of("time", backend) if each.round == 0)
        assert first.left_out == (backend not in verified)
    assert slow.now - 1000 <= 150 + 16


def test_a_training_that_cannot_finish_gets_what_is_left_where_it_sees_every_image_once() -> None:
    world = World({"torch": 0.010, "im2col": 0.060, "loops": 0.600})
    began = world.now
    world.run(suite_of(), planned_of("torch", "im2col", "loops"))
    (cut,) = world.of("train", "im2col")
    assert cut.status == "budget"
    assert 1 <= (cut.epochs or 0) < 10
    assert world.of("train", "loops")[0].left_out
    assert world.now - began <= 281
    assert world.rows[-2] == cut  # after the rounds; the row of what was left out comes last


def test_more_rounds_are_run_where_intervals_are_wide_and_there_is_time() -> None:
    wide = {"native": 0.2}
    world = World(LENET, scatter=wide)
    world.run(suite_of(max_rounds=6), planned_of(*LENET))
    assert len(world.of("time", "native")) == 6
    assert len(world.of("time", "torch")) == 3
    hurried = World(LENET, scatter=wide)
    hurried.run(suite_of(total=60, max_rounds=6), planned_of(*LENET), train=False)
    assert not [each for each in hurried.rows if each.left_out]
    assert hurried.now <= 1000 + 60


def test_a_training_slower_than_foreseen_ends_with_its_share() -> None:
    world = World(LENET, slower_training=10.0)
    began = world.now
    world.run(suite_of(), planned_of(*LENET))
    assert world.of("train", "torch")[0].status == "budget"
    assert world.now - began <= 280 * 1.1
    assert len(world.of("time", "loops")) == 3  # time was kept for the rounds
    assert not any(each.left_out for each in world.rows if each.kind == "time")


def test_what_cannot_run_costs_no_time() -> None:
    planned = planned_of("torch", "native") + planned_of("cuda", obstacle=("unavailable", "no CUDA device"))
    handed: list[str] = []

    class Skipping(World):
        def take(self, task: Task, suite: Suite, forecast: Forecast) -> None:
            if task.planned.obstacle is None:
                super().take(task, suite, forecast)
            else:
                handed.append(task.kind)
                self.rows.append(self.row(task, status="unavailable"))

    world = Skipping({"torch": 0.01, "native": 0.01})
    world.run(suite_of(), planned)
    assert sorted(handed) == ["time"] * 3 + ["train", "verify"]
    assert world.order("train")[:2] == ["cuda", "torch"]


def test_trainings_alone_share_what_there_is_evenly_until_something_is_known() -> None:
    world = World({"torch": 0.010})
    world.run(suite_of(total=100), planned_of("torch", seeds=3), time=False)
    trained = world.of("train", "torch")
    assert len(trained) == 3
    assert world.now <= 1000 + 101
    assert (trained[0].train_seconds or 0) == pytest.approx(31, abs=3)
    assert trained[0].status == "budget"  # then a step's time is known, and the next one is seen to fit
    assert trained[1].status == "ok"
    easy = World({"torch": 0.001})
    easy.run(suite_of(total=100), planned_of("torch", seeds=3), time=False)
    assert {each.status for each in easy.of("train", "torch")} == {"ok"}


def test_a_resumed_run_goes_on_with_what_is_left_and_tries_what_was_left_out() -> None:
    first = World(LENET)
    first.run(suite_of(), planned_of(*LENET))
    again = World(LENET)
    again.run(suite_of(), planned_of(*LENET), kept=first.rows)
    assert again.now == 1000  # the budget is spent, and all rows are there
    assert len(again.rows) == len(first.rows)

    killed = World(LENET)
    half = first.rows[: len(first.rows) // 2]
    killed.run(suite_of(), planned_of(*LENET), kept=half)
    taken = sum(each.process_seconds or 0.0 for each in half)
    assert killed.now - 1000 <= 280 - taken
    assert len(killed.rows) == len(first.rows)

    longer = World(LENET)
    longer.run(suite_of(total=7200, train_seconds=7200), planned_of(*LENET), kept=first.rows)
    assert longer.of("train", "loops")[0].status == "ok"


def test_a_training_that_was_cut_by_another_total_is_run_again_and_a_finished_one_is_kept() -> None:
    steps = {"torch": 0.010, "im2col": 0.060}
    first = World(steps)
    first.run(suite_of(), planned_of(*steps))
    assert first.of("train", "im2col")[0].status == "budget"
    same = still_valid(
        first.rows, schedule(suite_of(), planned_of(*steps), lambda _: "same", "s", time=True, train=True)
    )
    assert len(same) == len(first.rows)
    other = World(steps)
    other.run(suite_of(total=2000, train_seconds=240.0), planned_of(*steps), kept=first.rows)
    assert other.of("train", "torch") == first.of("train", "torch")


def test_without_a_total_budget_the_order_is_that_of_the_schedule() -> None:
    world = World({"torch": 0.01, "native": 0.01})
    suite = suite_of(total=None, train_seconds=1.0)
    planned = planned_of("torch", "native")
    world.run(suite, planned)
    tasks = schedule(suite, planned, lambda combination: "same", "seed", time=True, train=True)
    assert [(each.kind, each.round, each.combination) for each in world.rows] == [
        slot(task) for task in tasks
    ]
    assert [each.order for each in world.rows] == [task.order for task in tasks]


def test_a_worker_that_hangs_is_killed_not_long_after_the_total() -> None:
    world = World(LENET)
    suite = suite_of()
    agenda = world.run(suite, planned_of(*LENET))
    assert agenda.timeout() <= GRACE_SECONDS + 280
    world.now += 500
    assert agenda.timeout() == GRACE_SECONDS


def agenda_after_one_round(suite: Suite, world: World) -> Agenda:
    tasks = schedule(suite, planned_of(*LENET), lambda combination: "same", "seed", time=True, train=True)
    forecast = Forecast(suite, TRAIN_IMAGES, TEST_IMAGES)
    agenda = Agenda(
        suite,
        tasks,
        forecast,
        blocked=lambda task: False,
        timed=lambda combination: world.timed[combination],
        deadline=world.now + (suite.budget.total_seconds or float("inf")),
        now=lambda: world.now,
    )
    for _ in range(8):
        task = agenda.next()
        assert task is not None
        world.take(task, suite, forecast)
    return agenda


def test_the_outlook_after_one_round_is_close_to_what_comes() -> None:
    world = World(LENET)
    suite = suite_of()
    agenda = agenda_after_one_round(suite, world)
    task = agenda.next()
    assert task is not None
    outlook = agenda.outlook()
    assert (
        outlook.words == "8 rounds, 2 trainings (native, im2col)"
    )  # torch's is current, that of loops cannot be
    began = world.now
    while task is not None:
        world.take(task, suite, agenda.forecast)
        task = agenda.next()
    assert outlook.seconds() == pytest.approx(world.now - began, rel=0.15)


def test_an_outlook_counts_down_and_never_below_what_comes_after_the_current_process() -> None:
    agenda = agenda_after_one_round(suite_of(total=None, train_seconds=10.0), World(LENET))
    agenda.next()
    outlook = agenda.outlook()
    assert outlook.seconds(1.0) == outlook.seconds() - 1.0
    assert outlook.seconds(1e6) == outlook.ahead
    assert replace(outlook, limit=30.0).seconds(10.0) == 20.0


def test_what_is_said_before_anything_is_measured_holds_the_total() -> None:
    planned = planned_of(*LENET)
    assert "it takes 4 min 40 s at most, its total budget" in before_anything(
        suite_of(), planned, time=True, train=True
    )
    short = before_anything(suite_of(train_seconds=1.0, max_seconds=0.5), planned, time=True, train=True)
    assert short.startswith("it takes between ")
    nothing = before_anything(suite_of(None), [], time=True, train=True)
    assert nothing.startswith("it takes about 6 s; ")


def test_a_problem_trains_on_its_own_images() -> None:
    problem = Problem("own", lambda *_: (torch.empty(0), None), loss=lambda *_: torch.empty(0))
    (planned,) = planned_of("torch", problem=problem)
    suite = suite_of()
    (task,) = [
        task
        for task in schedule(suite, [planned], lambda _: "same", "seed", time=False, train=True)
        if task.kind == "train"
    ]
    forecast = Forecast(suite, TRAIN_IMAGES, TEST_IMAGES)
    assert forecast.training(task) is None
    forecast.learn([row(**vars(task.combination), step_ms_median=10.0, steps=30, process_seconds=2.0)])
    training = forecast.training(task)
    assert training is not None
    assert training.steps == pytest.approx(0.01 * planned.recipe.epochs)
