"""Before a slot gets work: ask its machine for versions, data and backends, and refuse what differs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from convbench.registry import ConvbenchError, Registry
from convbench.suites.cluster.blocks import Block, device_type
from convbench.suites.cluster.connection import RemoteNode
from convbench.suites.cluster.preflight import Description, Refused, describe, differences
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Suite
from convbench.suites.processes import probe
from convbench.suites.processes.probe import Peaks
from convbench.suites.processes.protocol import Survey
from convbench.suites.runner.prepare import plan_here
from convbench.suites.runner.quiet import Quiet

NODE_FACTS = (
    "machine_id",
    "operating_system",
    "kernel",
    "python",
    "cpu_model",
    "physical_cores",
    "logical_cores",
    "affinity",
    "memory_gb",
    "gpus",
)


@dataclass(eq=False)
class Member:
    """A slot that this run holds, what is known of its machine, and the block that it does."""

    node: RemoteNode
    description: Description = field(init=False)
    survey: Survey = field(init=False)
    data: tuple[str, str] = field(init=False)  # the name of the dataset, and its digest
    planned: list[Planned] = field(init=False)
    peaks: Peaks = field(init=False)
    quiet: Quiet = field(init=False)
    block: Block | None = None
    inbox: SimpleQueue[Block | None] = field(default_factory=SimpleQueue)

    @property
    def name(self) -> str:
        """That of the slot."""
        return self.node.slot.name

    @property
    def device(self) -> str:
        """The kind of its device."""
        return self.node.slot.device

    @property
    def torch_device(self) -> str:
        """The device as its workers name it: they see one GPU."""
        return self.device if self.device == "cpu" else f"{self.device}:0"

    @property
    def machine_kind(self) -> str:
        """Machines of one kind are verified once."""
        if self.device == "cpu":
            return f"{self.description.processor}, {self.description.cores} cores"
        return self.survey.devices[self.torch_device]

    @property
    def facts(self) -> dict[str, Any]:
        """What environment.json keeps of its machine."""
        environment = {name: self.survey.environment.get(name) for name in NODE_FACTS}
        return {**environment, "devices": self.survey.devices, "peaks": self.peaks}


@dataclass(frozen=True)
class Reference:
    """What all machines of a run have in common; a machine that joins later is compared with it.

    `devices` are torch's names with those of their models, and `planned` has the combinations by kind of device.
    """

    threads: int
    data: tuple[str, str]
    devices: Mapping[str, str]
    planned: Mapping[str, list[Planned]]


@dataclass(frozen=True)
class Admission:
    """Asks machines what they are, many at once.

    `refuse` is called with every slot that cannot be used and the reason; `say` with what a person should know.
    """

    suite: Suite
    registry: Registry
    data_dir: Path | str | None
    refuse: Callable[[Member, ConvbenchError], None]
    say: Callable[[str], None]
    ours: Description = field(default_factory=describe)
    plans: deque[list[Planned]] = field(default_factory=lambda: deque(maxlen=4))  # alike ones are kept once

    def admit(
        self, members: Sequence[Member], reference: Reference | None = None
    ) -> tuple[list[Member], Reference | None]:
        """Those of the slots that can be used, and what they have in common; None where nothing is known of it."""
        members = self._each(members, self._describe)
        if not members:
            return [], reference
        threads = reference.threads if reference else self._threads(members)
        members = self._each(members, lambda member: self._survey(member, threads))
        if not members:
            return [], reference
        found = Counter(member.data for member in members)
        data = reference.data if reference else found.most_common(1)[0][0]
        devices = reference.devices if reference else devices_of(members)
        members = self._each(members, lambda member: self._plan(member, data, devices))
        if reference is None:
            planned: dict[str, list[Planned]] = {}
            for member in members:
                planned.setdefault(member.device, member.planned)
            reference = Reference(threads, data, devices, planned)
        known = reference
        return self._each(members, lambda member: self._compare(member, known)), reference

    def _describe(self, member: Member) -> None:
        member.description = member.node.describe()
        if found := differences(self.ours, member.description):
            raise Refused("; ".join(found))

    def _threads(self, members: Sequence[Member]) -> int:
        """Those of the suite, or as many as the smallest machine has cores for."""
        cores = {member.description.cores for member in members}
        if self.suite.timing.threads is None and len(cores) > 1:
            self.say(
                f"machines have {min(cores)} to {max(cores)} cores: every process has {min(cores)} threads, "
                "as many as the smallest machine can run"
            )
        return self.suite.timing.threads or min(cores)

    def _survey(self, member: Member, threads: int) -> None:
        if self.suite.timing.threads is None and member.description.cores < threads:
            raise Refused(f"it has {member.description.cores} cores, and processes have {threads} threads")
        for unlike in member.node.start(threads):
            self.say(f"{member.name}: {unlike}")
        dataset = self.suite.dataset
        sources = self.registry.datasets.distributions(dataset)
        member.survey = probe.survey(
            member.node, dataset, self.data_dir, lambda text: self.say(f"{member.name}: {text}"), sources
        )
        member.data = member.survey.images.name, member.node.data_digest()
        if member.torch_device not in member.survey.devices:
            raise Refused(f"torch finds no {member.device} there")

    def _plan(self, member: Member, data: tuple[str, str], devices: Mapping[str, str]) -> None:
        """Plan all combinations, and keep those of the slot's kind of device."""
        (name, _), (wanted, _) = member.data, data
        if name != wanted:
            raise Refused(f"its dataset is {name}, and that of the other machines {wanted}")
        if member.data != data:
            raise Refused(f"its images of {name} are not those of the other machines")
        planned = plan_here(self.suite, self.registry, member.node, replace(member.survey, devices=devices))
        found = [each for each in planned if device_type(each.combination) == member.device]
        member.planned = next((known for known in tuple(self.plans) if known == found), found)
        self.plans.append(member.planned)

    def _compare(self, member: Member, reference: Reference) -> None:
        """Refuse a machine that can run less or more than the others; measure the peaks of the others."""
        expected = {each.combination: each.obstacle for each in reference.planned.get(member.device, ())}
        for each in member.planned:
            there, elsewhere = each.obstacle, expected.get(each.combination)
            if (there is None) != (elsewhere is None):
                _, reason = there or elsewhere or ("", "")
                where = "and it can on other machines" if there else "on other machines, and it can there"
                raise Refused(f"backend {each.combination.backend!r} cannot run {where}: {reason}")
        member.peaks = probe.find_peaks(
            member.node,
            [
                (member.torch_device, each.combination.dtype)
                for each in member.planned
                if each.obstacle is None
            ],
            lambda text: self.say(f"{member.name}: {text}"),
            threads=reference.threads,
            memory_mb=self.suite.budget.memory_mb or member.description.memory_mb,
        )

    def _each(self, members: Sequence[Member], ask: Callable[[Member], None]) -> list[Member]:
        """Ask all of them at once; returns those with an answer that can be used."""
        accepted = []
        with ThreadPoolExecutor(max(1, len(members))) as pool:
            answers = [pool.submit(ask, member) for member in members]
            try:
                for member, answer in zip(members, answers, strict=True):
                    try:
                        answer.result()
                        accepted.append(member)
                    except ConvbenchError as error:
                        self.refuse(member, error)
            except BaseException:  # interrupted: the threads would go on waiting for answers
                for member in members:
                    member.node.close()
                raise
        return accepted


def devices_of(members: Sequence[Member]) -> dict[str, str]:
    """The devices of these slots, by torch's names, with one model's name each."""
    found = {member.torch_device: member.survey.devices[member.torch_device] for member in members}
    return dict(sorted(found.items()))


def environment_of(members: Sequence[Member]) -> dict[str, Any]:
    """What environment.json has of one machine, the peaks of all, and what each of them is."""
    peaks = {device: own for member in reversed(members) for device, own in member.peaks.items()}
    nodes = {member.name: member.facts for member in members}
    return {**members[0].survey.environment, "peaks": peaks, "nodes": nodes}
