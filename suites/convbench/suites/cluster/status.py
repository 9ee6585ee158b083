"""What goes on in a cluster: its slots, what each of them does, and what is left of every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convbench.suites.cluster.blocks import Slot
from convbench.suites.cluster.connection import NAMESPACE, STATUS, connected, slots_of
from convbench.suites.cluster.node import Doing

ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class ClusterStatus:
    """The slots of a cluster with what they do, None where that is nothing, and the runs that wait for one."""

    slots: Mapping[Slot, Doing | None]
    waiting: tuple[str, ...]

    @property
    def runs(self) -> dict[str, str]:
        """What is left of each run that holds a slot."""
        found: dict[str, str] = {}
        for doing in self.slots.values():
            if doing is not None:
                found[doing.run] = found.get(doing.run) or doing.left
        return found


def cluster_status(address: str) -> ClusterStatus:
    """Ask a running cluster; raises UsageError where there is none."""
    with connected(address) as ray:
        actors = {
            each["name"]: ray.get_actor(each["name"], namespace=NAMESPACE)
            for each in ray.util.list_named_actors(all_namespaces=True)
            if each["namespace"] == NAMESPACE
        }
        asked = {
            actor.doing.options(concurrency_group=STATUS).remote(): name for name, actor in actors.items()
        }
        answered, silent = (
            ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        )
        doing = {each.slot: each for each in map(_answer(ray), answered) if each is not None}
        slots = {slot: doing.get(slot.key) for slot in slots_of(ray.nodes())}
        return ClusterStatus(slots, tuple(sorted(asked[each].rpartition(" ")[0] for each in silent)))


def _answer(ray: Any) -> Any:
    def answer(reference: Any) -> Doing | None:
        try:
            found: Doing = ray.get(reference)
            return found
        except ray.exceptions.RayError:  # its run has just ended
            return None

    return answer
