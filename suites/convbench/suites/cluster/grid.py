"""Run the tasks of a suite on the machines of a cluster, block by block; only this process writes files.

Everything that changes is changed in the main thread. Each slot has a thread, which does one block at a time and
sends what comes of it back.
"""

from __future__ import annotations

import json
import math
import shlex
import threading
import time as clock
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from convbench.registry import ConvbenchError, Registry
from convbench.results.analysis.standings import BASELINE
from convbench.results.schema import Combination, Row
from convbench.results.storage.store import RunStore
from convbench.suites.cluster.admission import Admission, Member, Reference, environment_of
from convbench.suites.cluster.block_run import Done, Relay, do_block
from convbench.suites.cluster.blocks import (
    MOST_ATTEMPTS,
    Slot,
    Waiting,
    blocks_of,
    verified_on_each,
    whole_blocks,
)
from convbench.suites.cluster.connection import CPU_SLOT, Lost, RemoteNode, slots_of
from convbench.suites.config.durations import span
from convbench.suites.config.plan import Planned, check_possible
from convbench.suites.config.suite import Suite
from convbench.suites.processes.protocol import Measured
from convbench.suites.runner.agenda import Agenda, slot
from convbench.suites.runner.forecast import Forecast
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.quiet import Quiet
from convbench.suites.runner.recorder import Circumstances, Recorder
from convbench.suites.runner.schedule import Task, left_alone, planned_processes, schedule, still_valid

LOOK_SECONDS = 5.0  # between two looks for machines that have joined
HEAD_SECONDS = 30.0  # without an answer of the head; Ray would end this process after a minute
BUSY_SECONDS = 30.0  # for which the run waits, at first, for slots that other runs hold
ALONE_SECONDS = 120.0  # without any machine for what is left, before the run gives up
AGAIN_SECONDS = 15.0  # until a lost slot is asked again: it takes Ray a while to see that a machine is gone
THREAD_SECONDS = 10.0  # for a thread to end
RESTORE_EVERY = 100  # times as long as it takes to look after the files of the run
ANY_MACHINE = "one of a cluster"  # of which machine it is, no key of a task depends


class Grid:
    """A run on a cluster that has been joined."""

    def __init__(
        self,
        ray: Any,
        suite: Suite,
        registry: Registry,
        store: RunStore,
        watcher: Watcher,
        data_dir: Path | str | None,
    ) -> None:
        self._ray, self._suite, self._registry, self._store = ray, suite, registry, store
        self._watcher = watcher
        self._messages: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._nodes: dict[tuple[str, str, int], RemoteNode] = {}  # the last of each slot
        self._members: list[Member] = []
        self._threads: list[threading.Thread] = []
        self._refused: list[str] = []
        self._again: dict[tuple[str, str, int], float] = {}  # when a slot that was lost may be asked again
        self._joining = 0
        self._over = threading.Event()
        self._restore_at = 0.0
        self._silent = 0.0  # for how many seconds the head has not answered
        self._changed = True  # since blocks were handed out
        self._admission = Admission(suite, registry, data_dir, self._refuse, self._note)
        self._reference: Reference | None = None

    def run(self, *, time: bool, train: bool) -> Generator[None, None, None]:
        """Ask the machines, plan, and do every block; yields after whatever happens."""
        try:
            self._assemble()
            self._plan(time=time, train=train)
            yield
            yield from self._work()
        finally:
            self._over.set()
            for node in self._nodes.values():
                node.close()  # which ends what its thread waits for
            for member in self._members:
                member.inbox.put(None)
            until = clock.monotonic() + THREAD_SECONDS
            for thread in self._threads:  # one that asked Ray for something later on would start another Ray
                thread.join(max(0.0, until - clock.monotonic()))
            self._restore()

    def outline(self) -> tuple[list[Planned], dict[str, str], Counter[str]]:
        """What is planned, the kind of machine of each slot, and how many blocks of each kind wait for one."""
        kinds = {member.name: member.machine_kind for member in self._members}
        return self._planned, kinds, self._waiting.counted()

    # --- machines ---

    def _assemble(self) -> None:
        """Find the first machines; raises ConvbenchError where none can be used."""
        self._watcher.stage("asking the machines of the cluster")
        (self._store.path / "run.log").touch()
        found = [self._asked(each) for each in slots_of(self._ray.nodes())]
        if not found:
            raise ConvbenchError(
                "no machine of this Ray cluster offers itself for measuring: start Ray on each that may measure "
                f"with `ray start ... --resources='{{\"{CPU_SLOT}\": 1}}'`"
            )
        waiting = {node.described: node for node in found}
        ready, busy = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=BUSY_SECONDS)
        while not ready:
            self._watcher.note("every slot of the cluster is in use; waiting for one")
            ready, busy = self._ray.wait(busy, num_returns=1, timeout=600.0)
        members = [Member(waiting[each]) for each in ready]
        self._members, self._reference = self._admission.admit(members)
        self._handle_messages()
        if self._reference is None or not self._members:
            raise ConvbenchError(f"no machine of the cluster can be used: {'; '.join(self._refused[:3])}")
        for each in busy:
            self._watcher.note(f"{waiting[each].slot.name} is in use; it joins when it is free")
            self._join(waiting[each])

    def _asked(self, place: Any) -> RemoteNode:
        """Ask for a slot."""
        node = RemoteNode(self._ray, place, self._store.path.name, self._print)
        self._nodes[place.key] = node
        self._again[place.key] = math.inf
        return node

    def _join(self, node: RemoteNode) -> None:
        """Admit a slot that came later, in a thread: its machine may take a while to answer."""
        self._joining += 1

        def admit() -> None:
            members: list[Member] = []
            try:
                self._ray.wait([node.described], timeout=None)
                members, _ = self._admission.admit([Member(node)], self._reference)
            finally:
                self._messages.put(lambda: self._joined(members))

        self._start(admit)

    def _joined(self, members: Sequence[Member]) -> None:
        self._joining -= 1
        self._changed = True
        for member in members:
            self._watcher.note(f"{member.name} has joined")
            self._members.append(member)
            self._begin(member)
        if members:
            self._verify_on_new_kinds()

    def _refuse(self, member: Member, error: ConvbenchError) -> None:
        self._refused.append(f"{member.name} is not used: {error}")
        self._note(self._refused[-1])
        self._give_up(member, AGAIN_SECONDS if isinstance(error, Lost) else math.inf)

    def _give_up(self, member: Member, seconds: float) -> None:
        """Let go of a slot, and ask for it again after so many seconds if its machine is still there."""
        member.node.close()
        self._again[member.node.slot.key] = clock.monotonic() + seconds

    def _note(self, text: str) -> None:
        self._messages.put(lambda: self._watcher.note(text))

    def _print(self, printed: bytes) -> None:
        """What workers print goes to the run's log, as on one machine."""

        def write() -> None:
            with (self._store.path / "run.log").open("ab") as log:
                log.write(printed)

        self._messages.put(write)

    def _watch(self) -> None:
        """Ask the head which machines there are, and tell all of them that the run is there.

        In a thread of its own, for a head that is lost does not answer.
        """
        while not self._over.wait(LOOK_SECONDS):
            for node in [*self._nodes.values()]:
                node.say()
            with suppress(Exception):  # the head is lost, which the main thread notices, or the run is over
                places = slots_of(self._ray.nodes())
                self._messages.put(partial(self._look_for_machines, places))

    def _look_for_machines(self, places: Sequence[Slot]) -> None:
        self._silent = 0.0
        for place in places:
            if clock.monotonic() >= self._again.get(place.key, 0.0):
                self._join(self._asked(place))

    # --- the plan ---

    def _plan(self, *, time: bool, train: bool) -> None:
        """Schedule all tasks, write down what is to be run, and keep what a resumed run has."""
        assert self._reference is not None
        suite, registry, store = self._suite, self._registry, self._store
        survey = self._members[0].survey
        self._suite = suite = suite.override({"timing.threads": self._reference.threads})
        total = suite.budget.total_seconds
        kinds = [device.partition(":")[0] for device in self._reference.devices]
        planned = [each for kind in kinds for each in self._reference.planned.get(kind, ())]
        if not store.rows():
            check_possible(planned)
        self._planned = planned
        self._facts = Circumstances(
            convbench_version=registry.version,
            torch_version=survey.torch_version,
            machine_id=ANY_MACHINE,
            device_names={},
            images=survey.images,
            registry=registry,
        )
        self._scheduled = schedule(
            suite, planned, self._facts.of_combination, store.path.name, time=time, train=train
        )
        self._kinds: dict[str, list[str]] = {}
        for member in self._members:
            self._add_kind(member)
        for kinds in self._kinds.values():
            kinds.sort()
        tasks = verified_on_each(self._scheduled, self._kinds)
        kept, self._others = still_valid(store.rows(), tasks), left_alone(store.rows(), tasks)
        kept = whole_blocks(kept, tasks)
        self._describe(tasks)
        store.write("suite.toml", suite.to_toml())
        store.keep(self._others + kept)
        self._recorder = Recorder(suite, store, self._facts)
        forecast = Forecast(suite, survey.train_images, survey.test_images)
        forecast.learn(kept)
        done = [(row.kind, row.round, row.combination) for row in kept]
        certain = [task for task in tasks if not task.optional]
        self._watcher.begin(certain, len(certain) - len({slot(task) for task in certain}.difference(done)))
        self._agenda = Agenda(
            suite,
            tasks,
            forecast,
            blocked=lambda task: self._obstacle(task) is not None,
            timed=self._timed,
            done=done,
            deadline=math.inf if total is None else clock.monotonic() + total,
            order=count(1 + max((row.order or 0 for row in kept), default=-1)),
        )
        self._waiting = Waiting(blocks_of(tasks, self._kinds), done, self._agenda.needed)
        for task in tasks:
            if task.planned.obstacle is not None and slot(task) not in done:
                self._write_obstacle(task)

    def _timed(self, combination: Combination) -> list[Row]:
        """The rounds of a combination so far; if machines differ, its times are multiples of the baseline's."""
        rows = self._recorder.timed(combination)
        if len({row.node for row in rows}) < 2:
            return rows
        base = {
            row.block: row.step_ms_median
            for row in self._recorder.timed(replace(combination, backend=BASELINE))
            if row.step_ms_median
        }
        return [
            replace(row, step_ms_median=row.step_ms_median / base[row.block])
            if row.step_ms_median and row.block in base
            else row
            for row in rows
        ]

    def _add_kind(self, member: Member) -> bool:
        kinds = self._kinds.setdefault(member.device, [])
        new = member.machine_kind not in kinds
        if new:
            kinds.append(member.machine_kind)
        return new

    def _verify_on_new_kinds(self) -> None:
        """Verify on the kind of machine that has joined before anything else is measured there."""
        before = {device: list(kinds) for device, kinds in self._kinds.items()}
        new = [self._add_kind(member) for member in self._members]
        if not any(new):
            return
        tasks = verified_on_each(self._scheduled, self._kinds)
        self._describe(tasks)
        known = {slot(task) for task in verified_on_each(self._scheduled, before)}
        self._waiting.add(blocks_of((task for task in tasks if slot(task) not in known), self._kinds))

    def _describe(self, tasks: Sequence[Task]) -> None:
        """Write environment.json."""
        planned = {"planned_processes": planned_processes(tasks, self._others)}
        environment = {**environment_of(self._members), **planned}
        self._store.write("environment.json", json.dumps(environment, indent=2) + "\n")

    # --- the work ---

    def _work(self) -> Generator[None, None, None]:
        """Hand out blocks until none is left."""
        self._watcher.note(f"results go to {self._store.path}")
        for member in self._members:
            self._begin(member)
        self._start(self._watch)
        now = clock.monotonic()
        look_at = now + LOOK_SECONDS
        idle_since: float | None = None
        while True:
            if self._changed:
                self._changed = False
                self._hand_out()
            busy = any(member.block is not None for member in self._members)
            if not busy and (self._agenda.left <= 0 or not self._left()):
                break
            idle_since = (idle_since or clock.monotonic()) if not busy and not self._joining else None
            if idle_since is not None and clock.monotonic() - idle_since > ALONE_SECONDS:
                raise ConvbenchError(
                    f"no machine is left for what has to be run on {', '.join(sorted(self._left()))}"
                )
            try:
                self._messages.get(timeout=1.0)()
            except Empty:
                pass
            self._handle_messages()
            before, now = now, clock.monotonic()
            self._silent += min(now - before, 2.0)  # longer only if this process was stopped
            if self._silent > HEAD_SECONDS:
                raise ConvbenchError(
                    f"the head of the Ray cluster has not answered for {HEAD_SECONDS:g} s: it is gone, or hangs; "
                    f"convbench run --resume {shlex.quote(str(self._store.path))} --cluster ADDRESS goes on"
                )
            if now >= look_at:
                self._say_what_is_left()
                look_at = now + LOOK_SECONDS
            yield
        for task, reason in self._agenda.left_out() if self._agenda.limited else ():
            obstacle = self._obstacle(task)
            self._recorder.write(
                task, Measured(*obstacle) if obstacle else Measured("budget", notes=(reason,))
            )

    def _say_what_is_left(self) -> None:
        """On the display, and to those who ask a machine."""
        outlook = self._agenda.outlook()
        outlook = replace(outlook, current=0.0, ahead=outlook.ahead / max(1, len(self._members)))
        self._watcher.outlook(outlook)
        for member in self._members[:1]:
            member.node.say(
                left=f"about {span(outlook.seconds())} left: {outlook.words}" if outlook.words else ""
            )

    def _left(self) -> set[str]:
        """The kinds of devices that something is left to do for."""
        return self._waiting.devices({member.machine_kind for member in self._members})

    def _hand_out(self) -> None:
        """Give every idle slot a block that is ready; a machine works on its cores or on its accelerators."""
        for member in self._members:
            while member.block is None and self._agenda.left > 0 and not self._disturbs(member):
                block = self._waiting.take(member.device, member.machine_kind)
                if block is None:
                    break
                able = tuple(task for task in block.tasks if self._able(task))
                if not able:
                    self._waiting.end(block)
                    continue
                member.block = replace(block, tasks=able)
                member.inbox.put(replace(member.block, tasks=tuple(self._agenda.take(task) for task in able)))

    def _disturbs(self, member: Member) -> bool:
        """Whether another kind of device of the same machine is at work."""
        return any(
            other.block is not None and other.device != member.device
            for other in self._members
            if other.node.slot.node_id == member.node.slot.node_id
        )

    def _able(self, task: Task) -> bool:
        """Whether a task can be run; its row is written where it cannot."""
        if self._obstacle(task) is None:
            return True
        self._write_obstacle(self._agenda.take(task))
        return False

    def _obstacle(self, task: Task) -> Any:
        return task.planned.obstacle or (
            None if task.kind == "verify" else self._recorder.found_wrong(task.combination)
        )

    def _write_obstacle(self, task: Task) -> None:
        status, reason = self._obstacle(task)
        self._watcher.start(task)
        row = self._recorder.write(task, Measured(status, reason, {"machine_id": None}))
        self._watcher.finish(task, row)

    def _begin(self, member: Member) -> None:
        """Start the thread of a slot."""
        relay = Relay(self._watcher, self._messages.put, member.name)
        limit = self._suite.timing.quiet_seconds
        member.quiet = Quiet(limit, relay, look=member.node.look, cpus=member.description.cpus)

        def work() -> None:
            while (block := member.inbox.get()) is not None:
                try:
                    done = do_block(member, block, self._suite, self._recorder, relay, self._agenda.timeout)
                    self._messages.put(partial(self._finish, member, done))
                except ConvbenchError as error:
                    self._messages.put(partial(self._lost, member, str(error)))
                    return
                except BaseException as error:  # noqa: BLE001 - a fault of ours ends the run, in the main thread
                    self._messages.put(partial(raise_, error))
                    return

        self._start(work)

    def _finish(self, member: Member, done: Done) -> None:
        """A block is whole: write its rows."""
        self._changed = True
        block = member.block
        assert block is not None
        survey, place = member.survey, member.node.slot
        facts: dict[str, Any] = {
            "node": place.node,
            "block": block.name,
            "machine_id": survey.environment["machine_id"],
            "device_name": survey.devices[member.torch_device],
            "concurrent_devices": max(place.accelerators - 1, 0) if place.device != "cpu" else 0,
        }
        again = (f"attempt {block.attempt}: the machine before was lost",) if block.attempt > 1 else ()
        if clock.monotonic() >= self._restore_at:
            self._restore()
        wrong = {task.combination for task, _, _ in done.results if self._obstacle(task) is not None}
        self._store.append_epochs(each for each in done.epochs if each.combination not in wrong)
        self._store.append_samples(each for each in done.samples if each.combination not in wrong)
        for task, result, started_at in done.results:
            if task.combination in wrong:  # found out on another machine meanwhile
                result = Measured(*self._obstacle(task))
            result = replace(result, measures={**result.measures, **facts}, notes=(*result.notes, *again))
            row = self._recorder.write(task, result, started_at)
            self._watcher.finish(self._relayed(member, task), row)
            self._agenda.forecast.learn([row])
            member.quiet.learn(row)
        member.block = None
        self._waiting.end(block)

    def _restore(self) -> None:
        """Put back what others have changed in the files: less often as these grow, for all of them is read."""
        began = clock.monotonic()
        if changed := ", ".join(self._store.restore()):
            self._watcher.note(f"{changed} of the run was changed meanwhile, and put back")
        self._restore_at = began + RESTORE_EVERY * (clock.monotonic() - began)

    def _lost(self, member: Member, reason: str) -> None:
        """A machine is gone: its block goes to another one, unless that has happened too often."""
        self._changed = True
        self._members.remove(member)
        self._give_up(member, AGAIN_SECONDS)
        block, member.block = member.block, None
        if block is None:
            return
        for task in block.tasks:
            self._watcher.lose(self._relayed(member, task))
        if block.attempt < MOST_ATTEMPTS:
            self._watcher.note(f"{reason}; {block.name} goes to another machine")
            self._agenda.give_back(block.tasks)
            self._waiting.put_back(block)
            return
        self._watcher.note(f"{reason}; {block.name} is given up")
        error = f"its machine was lost {block.attempt} times; at last: {reason}"
        for task in block.tasks:
            row = self._recorder.write(
                task, Measured("crashed", error, {"machine_id": None, "node": member.node.slot.node})
            )
            self._watcher.finish(self._relayed(member, task), row)
        self._waiting.end(block)

    def _relayed(self, member: Member, task: Task) -> Task:
        return replace(task, side=member.name)

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _handle_messages(self) -> None:
        while not self._messages.empty():
            self._messages.get()()


def raise_(error: BaseException) -> None:
    """Raise an exception of another thread."""
    raise error
