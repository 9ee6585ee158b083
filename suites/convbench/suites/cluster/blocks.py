"""Blocks of tasks, each of which one machine does, and which one a free slot gets. Nothing here knows Ray.

A block is one round of one comparison group: every backend of one architecture under the same conditions, in
random order. Its rows are compared with each other, so that machines may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from convbench.results.schema import Combination, Kind, Row
from convbench.suites.runner.agenda import TaskId, is_baseline, slot
from convbench.suites.runner.schedule import Task

MOST_ATTEMPTS = 5  # of a block whose machines are lost


@dataclass(frozen=True)
class Slot:
    """A place on a machine that does one block at a time: all of its cores, or one accelerator.

    `node_id` is Ray's name of the machine, and `node` ours; `accelerators` is how many the machine has.
    """

    node_id: str
    node: str
    device: str = "cpu"
    number: int = 0
    accelerators: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies it, whatever its machine is called."""
        return self.node_id, self.device, self.number

    @property
    def name(self) -> str:
        """`node-3`, or `node-3 cuda:1` of an accelerator."""
        return self.node if self.device == "cpu" else f"{self.node} {self.device}:{self.number}"


@dataclass(frozen=True)
class Block:
    """Tasks that one machine does, one after the other; of a verification, one of that kind."""

    kind: Kind
    group: str
    tasks: tuple[Task, ...]
    machine_kind: str | None = None
    attempt: int = 1

    @property
    def device(self) -> str:
        """The kind of device that it needs."""
        return device_type(self.tasks[0].combination)

    @property
    def name(self) -> str:
        """As rows carry it: `lenet/cpu/float32/b128/contiguous/eager/time2`."""
        where = self.tasks[0].combination.label if self.kind == "train" else self.group
        return f"{where}/{self.kind}{self.tasks[0].round}"

    @property
    def optional(self) -> bool:
        """Whether it is a round that is only run if those before it were not enough."""
        return self.tasks[0].optional


def device_type(combination: Combination) -> str:
    """`cuda` of `cuda:0`."""
    return combination.device.partition(":")[0]


def group_of(combination: Combination) -> str:
    """The comparison group: all of a combination but its backend, its seed and its world size."""
    each = combination
    where = f"{each.architecture}/{device_type(each)}/{each.dtype}/b{each.batch_size}"
    return f"{where}/{each.memory_format}/{each.mode}"


def verified_on_each(tasks: Iterable[Task], kinds: Mapping[str, Sequence[str]]) -> list[Task]:
    """The tasks, with a verification for each kind of machine; its number is the task's round.

    Args:
        kinds: the kinds of machines, by kind of device.
    """
    expanded = []
    for task in tasks:
        if task.kind != "verify" or task.planned.obstacle is not None:
            expanded.append(task)
            continue
        for number, kind in enumerate(kinds[device_type(task.combination)]):
            expanded.append(replace(task, round=number, key=f"{task.key} on {kind}"))
    return expanded


def blocks_of(tasks: Iterable[Task], kinds: Mapping[str, Sequence[str]]) -> list[Block]:
    """The blocks of the tasks that can run: verifications first, then rounds, trainings, and optional rounds."""
    found: dict[tuple[Kind, str, int], list[Task]] = {}
    trainings = []
    for task in tasks:
        if task.planned.obstacle is not None:
            continue
        group = group_of(task.combination)
        if task.kind == "train":
            trainings.append(Block("train", group, (task,)))
        else:
            found.setdefault((task.kind, group, task.round), []).append(task)
    blocks = []
    for (kind, group, number), own in found.items():
        on = kinds[device_type(own[0].combination)][number] if kind == "verify" else None
        blocks.append(Block(kind, group, tuple(own), on))
    rounds = [block for block in blocks if block.kind == "time"]
    return [
        *(block for block in blocks if block.kind == "verify"),
        *(block for block in rounds if not block.optional),
        *trainings,
        *(block for block in rounds if block.optional),
    ]


def whole_blocks(kept: Sequence[Row], tasks: Sequence[Task]) -> list[Row]:
    """Those of the rows that a resumed run keeps whose block is whole.

    What is missing of a round would be measured on another machine than what is there, so that the round is
    measured again. A combination without a verification to keep is missing in no round:
    most of them fail again.
    """
    there = {(row.kind, row.round, row.combination) for row in kept}
    verified = {row.combination for row in kept if row.kind == "verify"}
    partial = {
        (task.round, group_of(task.combination))
        for task in tasks
        if task.kind == "time" and not task.optional
        if task.combination in verified and slot(task) not in there
    }
    return [
        row for row in kept if row.kind != "time" or (row.round, group_of(row.combination)) not in partial
    ]


class Waiting:
    """The blocks that are not done, and which of them are ready.

    What is timed or trained on a kind of machine waits for the verification of its group on that kind, and an
    optional round for the others.
    """

    def __init__(
        self, blocks: Iterable[Block], done: Iterable[TaskId], needed: Callable[[Task], bool]
    ) -> None:
        """`needed` says whether an optional task is to be run."""
        self._done, self._needed = set(done), needed
        self._blocks: list[Block] = []
        self._unverified: set[tuple[str, str | None]] = set()  # group and kind of machine
        self._untimed: Counter[str] = Counter()  # by group
        self.add(blocks)

    def add(self, blocks: Iterable[Block]) -> None:
        """Further blocks, less what is done."""
        for block in blocks:
            left = tuple(task for task in block.tasks if slot(task) not in self._done)
            if not left:
                continue
            self._blocks.append(replace(block, tasks=left))
            if block.kind == "verify":
                self._unverified.add((block.group, block.machine_kind))
            self._untimed[block.group] += block.kind == "time" and not block.optional

    def devices(self, machine_kinds: Collection[str]) -> set[str]:
        """The kinds of devices that blocks wait for; verifications on other kinds of machines do not count."""
        return {
            block.device
            for block in self._blocks
            if block.machine_kind is None or block.machine_kind in machine_kinds
            if not block.optional or self._wanted(block) is not None
        }

    def take(self, device: str, machine_kind: str) -> Block | None:
        """The next block for a slot of such a machine; None where nothing is ready."""
        for at, block in enumerate(self._blocks):
            if block.device != device or block.machine_kind not in (None, machine_kind):
                continue
            if block.kind != "verify" and (block.group, machine_kind) in self._unverified:
                continue
            if block.optional:
                if self._untimed[block.group] or (wanted := self._wanted(block)) is None:
                    continue
                block = wanted
            del self._blocks[at]
            return block
        return None

    def counted(self) -> Counter[str]:
        """How many there are of each kind, without optional rounds."""
        return Counter(block.kind for block in self._blocks if not block.optional)

    def put_back(self, block: Block) -> None:
        """The machine of a block was lost: another one takes it, before all others."""
        self._blocks.insert(0, replace(block, attempt=block.attempt + 1))

    def end(self, block: Block) -> None:
        """A block that was taken is done, or given up."""
        if block.kind == "verify":
            self._unverified.discard((block.group, block.machine_kind))
        self._untimed[block.group] -= block.kind == "time" and not block.optional

    def _wanted(self, block: Block) -> Block | None:
        """An optional round of those that need it, and of the baseline that they are compared with."""
        wanted = [task for task in block.tasks if self._needed(task)]
        if not wanted:
            return None
        return replace(
            block, tasks=tuple(task for task in block.tasks if task in wanted or is_baseline(task))
        )
