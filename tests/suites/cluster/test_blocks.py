"""Blocks: what is in one, in which order slots get them, and what is kept of a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from convbench.registry import Recipe
from convbench.results.schema import Combination
from convbench.suites.cluster.blocks import (
    Block,
    Slot,
    Waiting,
    blocks_of,
    verified_on_each,
    whole_blocks,
)
from convbench.suites.cluster.connection import slots_of
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Suite, Timing
from convbench.suites.runner.agenda import TaskId, slot
from convbench.suites.runner.schedule import Task, schedule
from result_rows import row

SUITE = Suite(name="some", timing=Timing(rounds=2, max_rounds=3, threads=1))
KINDS = {"cpu": ["old", "young"], "cuda": ["gpu"]}


def planned(architecture: str, backend: str, device: str = "cpu", seed: int = 0) -> Planned:
    return Planned(
        Combination(architecture, backend, device, "float32", 16, "contiguous", "eager", seed), Recipe()
    )


PLANNED = [
    planned(architecture, backend, device)
    for architecture in ("tiny", "large")
    for backend in ("torch", "native")
    for device in ("cpu", "cuda:0")
]


def tasks(entries: list[Planned] = PLANNED) -> list[Task]:
    return schedule(SUITE, entries, lambda combination: "", "run", time=True, train=True)


def waiting(
    needed: Callable[[Task], bool] = lambda task: not task.optional, done: Iterable[TaskId] = ()
) -> Waiting:
    return Waiting(blocks_of(verified_on_each(tasks(), KINDS), KINDS), done, needed)


def drain(blocks: Waiting, device: str, kind: str) -> list[Block]:
    found = []
    while (block := blocks.take(device, kind)) is not None:
        found.append(block)
        blocks.end(block)
    return found


def test_a_round_of_a_group_is_one_block_with_every_backend() -> None:
    rounds = [
        block for block in blocks_of(tasks(), {"cpu": ["old"], "cuda": ["gpu"]}) if block.kind == "time"
    ]
    assert len(rounds) == 2 * 2 * 3  # architectures, devices, rounds
    for block in rounds:
        assert {task.combination.backend for task in block.tasks} == {"torch", "native"}
        assert (
            len(
                {(task.round, task.combination.architecture, task.combination.device) for task in block.tasks}
            )
            == 1
        )


def test_seeds_are_in_the_block_of_their_group_and_a_training_is_a_block_of_its_own() -> None:
    blocks = blocks_of(tasks([planned("tiny", "torch", seed=seed) for seed in (0, 1)]), {"cpu": ["old"]})
    assert [(block.kind, len(block.tasks)) for block in blocks] == [
        ("verify", 2), ("time", 2), ("time", 2), ("train", 1), ("train", 1), ("time", 2),
    ]  # fmt: skip
    assert len({block.name for block in blocks}) == len(blocks)


def test_what_cannot_run_is_in_no_block() -> None:
    entries = [planned("tiny", "torch"), replace(planned("tiny", "cuda"), obstacle=("unavailable", "no GPU"))]
    blocks = blocks_of(verified_on_each(tasks(entries), KINDS), KINDS)
    assert {task.combination.backend for block in blocks for task in block.tasks} == {"torch"}


def test_every_kind_of_machine_is_verified_once_and_first() -> None:
    blocks = waiting()
    old = drain(blocks, "cpu", "old")
    assert [block.kind for block in old[:2]] == ["verify", "verify"]
    assert {block.kind for block in old[2:]} == {"time", "train"}
    young = drain(blocks, "cpu", "young")
    assert [block.kind for block in young] == ["verify", "verify"]
    assert len({slot(task) for block in old + young for task in block.tasks}) == sum(
        len(block.tasks) for block in old + young
    )


def test_nothing_is_timed_on_a_kind_of_machine_before_its_verification_has_ended() -> None:
    blocks = waiting()
    first = blocks.take("cpu", "young")
    assert first is not None
    blocks.take("cpu", "young")
    assert first.kind == "verify"
    assert blocks.take("cpu", "young") is None
    blocks.end(first)
    later = blocks.take("cpu", "young")
    assert later is not None
    assert (later.kind, later.group) == ("time", first.group)


def test_a_gpu_gets_blocks_of_gpus_only() -> None:
    assert {block.device for block in drain(waiting(), "cuda", "gpu")} == {"cuda"}


def test_a_block_that_was_lost_comes_first_and_counts_its_attempts() -> None:
    blocks = waiting()
    block = blocks.take("cpu", "old")
    assert block is not None
    blocks.put_back(block)
    again = blocks.take("cpu", "old")
    assert again == replace(block, attempt=2)


def test_a_lost_verification_is_not_given_to_another_kind_of_machine() -> None:
    blocks = waiting()
    block = blocks.take("cpu", "old")
    assert block is not None
    blocks.put_back(block)
    other = blocks.take("cpu", "young")
    assert other is not None
    assert other.machine_kind == "young"


def test_verifications_on_machines_that_are_gone_keep_no_run_from_ending() -> None:
    blocks = waiting()
    drain(blocks, "cpu", "old")
    drain(blocks, "cuda", "gpu")
    assert blocks.devices({"old", "gpu"}) == set()
    assert blocks.devices({"young"}) == {"cpu"}


def test_an_optional_round_comes_last_with_those_that_need_it_and_the_baseline() -> None:
    def needed(task: Task) -> bool:
        each = task.combination
        return not task.optional or (each.architecture, each.backend) == ("tiny", "native")

    found = drain(waiting(needed), "cpu", "old")
    (optional,) = (block for block in found if block.optional)
    assert found[-1] == optional
    assert {(task.combination.architecture, task.combination.backend) for task in optional.tasks} == {
        ("tiny", "torch"), ("tiny", "native"),
    }  # fmt: skip
    assert not any(block.optional for block in drain(waiting(), "cpu", "old"))


def test_what_is_done_is_not_done_again() -> None:
    first = drain(waiting(), "cpu", "old")
    done = [slot(task) for block in first[:-1] for task in block.tasks]
    assert drain(waiting(done=done), "cpu", "old") == first[-1:]


def test_a_round_that_is_not_whole_is_measured_again() -> None:
    every = verified_on_each(tasks([planned("tiny", name) for name in ("torch", "native")]), {"cpu": ["old"]})
    rows = [
        row(kind=task.kind, round=task.round, **vars(task.combination)) for task in every if not task.optional
    ]
    assert whole_blocks(rows, every) == rows
    cut = [each for each in rows if (each.kind, each.round, each.backend) != ("time", 1, "native")]
    assert [
        (each.kind, each.round, each.backend) for each in rows if each not in whole_blocks(cut, every)
    ] == [("time", 1, each.backend) for each in rows if (each.kind, each.round) == ("time", 1)]


def test_one_that_failed_its_verification_makes_no_round_partial() -> None:
    every = verified_on_each(tasks([planned("tiny", name) for name in ("torch", "native")]), {"cpu": ["old"]})
    kept = [
        row(kind=task.kind, round=task.round, **vars(task.combination))
        for task in every
        if task.combination.backend == "torch"
    ]
    assert whole_blocks(kept, every) == kept


def node(name: str, number: int, alive: bool = True, **resources: float) -> dict[str, object]:
    return {"NodeID": f"{number:06d}", "NodeManagerHostname": name, "Alive": alive, "Resources": resources}


def test_a_machine_offers_its_cores_and_each_accelerator() -> None:
    nodes = [
        node("a", 1, CPU=4, convbench_cpu=1, GPU=2),
        node("b", 2, CPU=4),
        node("c", 3, False, convbench_cpu=1),
    ]
    assert slots_of(nodes) == [
        Slot("000001", "a", "cpu", 0, 2), Slot("000001", "a", "cuda", 0, 2), Slot("000001", "a", "cuda", 1, 2),
    ]  # fmt: skip
    assert [each.name for each in slots_of(nodes)] == ["a", "a cuda:0", "a cuda:1"]


def test_machines_of_one_host_have_names_of_their_own() -> None:
    slots = slots_of([node("a", 1, convbench_cpu=1), node("a", 2, convbench_cpu=1)])
    assert [each.name for each in slots] == ["a-000001", "a-000002"]
