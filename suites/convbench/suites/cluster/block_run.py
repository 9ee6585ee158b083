"""Do one block on its machine, in the thread of its slot; what comes of it is written when the block is whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import cast

from convbench.results.schema import Epoch, Sample
from convbench.results.storage.store import RunStore
from convbench.suites.cluster.admission import Member
from convbench.suites.cluster.blocks import Block
from convbench.suites.config.suite import Suite
from convbench.suites.processes.protocol import Beat, Measured
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.recorder import Recorder
from convbench.suites.runner.schedule import Task
from convbench.suites.runner.task import RunContext


@dataclass
class Done:
    """What came of a block: a result and a start for each task, and the records of its processes."""

    results: list[tuple[Task, Measured, str]] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def append_epochs(self, epochs: Iterable[Epoch]) -> None:
        """As a store does; nothing is written before the whole block is there."""
        self.epochs += epochs

    def append_samples(self, samples: Iterable[Sample]) -> None:
        """As a store does."""
        self.samples += samples


class Relay(Watcher):
    """Passes on what happens on a slot, under its name, to the main thread."""

    def __init__(self, watcher: Watcher, post: Callable[[Callable[[], None]], None], name: str) -> None:
        self._watcher, self._post, self._name = watcher, post, name

    def note(self, text: str) -> None:
        self._post(lambda: self._watcher.note(f"{self._name}: {text}"))

    def start(self, task: Task) -> None:
        self._post(lambda: self._watcher.start(self.named(task)))

    def beat(self, task: Task, beat: Beat) -> None:
        self._post(lambda: self._watcher.beat(self.named(task), beat))

    def progress(self, task: Task, epoch: Epoch) -> None:
        self._post(lambda: self._watcher.progress(self.named(task), epoch))

    def named(self, task: Task) -> Task:
        """The task with the name of the slot that does it."""
        return replace(task, side=self._name)


def do_block(
    member: Member,
    block: Block,
    suite: Suite,
    recorder: Recorder,
    relay: Relay,
    timeout: Callable[[], float],
) -> Done:
    """Run the tasks of a block, one after the other, each in a worker process of its own.

    Raises:
        Lost: its machine is gone.
    """
    done, own = Done(), copy.copy(recorder)
    own.store = cast(RunStore, done)
    context = RunContext(
        suite=suite.override({"budget.memory_mb": suite.budget.memory_mb or member.description.memory_mb}),
        survey=member.survey,
        peaks=member.peaks,
        num_classes=recorder.facts.registry.dataset(suite.dataset).num_classes,
        supervisor=member.node,
        recorder=own,
        watcher=relay,
    )
    if block.kind != "verify":
        member.quiet.wait()
    for task in block.tasks:
        relay.start(task)
        member.node.say(task.label)
        result, started_at = context.measure(task, timeout())
        done.results.append((task, result, started_at))
    member.node.say("waits for work")
    return done
