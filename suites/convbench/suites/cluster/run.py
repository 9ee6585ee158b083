"""Run a suite on the cluster of an address, or ask its machines and plan everything without measuring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from convbench.registry import Registry
from convbench.registry.errors import listed
from convbench.results.storage.store import RunStore
from convbench.results.wording import count
from convbench.suites.cluster.connection import connected
from convbench.suites.cluster.grid import Grid
from convbench.suites.config.plan import Planned
from convbench.suites.config.suite import Suite
from convbench.suites.runner.progress import Watcher


def run_on_cluster(
    address: str,
    suite: Suite,
    registry: Registry,
    store: RunStore,
    watcher: Watcher,
    data_dir: Path | str | None,
    *,
    time: bool,
    train: bool,
) -> Generator[None, None, None]:
    """Run a suite on the cluster of that address; what `Run` does on one machine."""
    data_dir = None if data_dir is None else Path(data_dir).absolute()  # machines work in other directories
    watcher.stage("starting Ray" if address == "local" else "joining the cluster")
    with connected(address) as ray:
        yield from Grid(ray, suite, registry, store, watcher, data_dir).run(time=time, train=train)


@dataclass(frozen=True)
class ClusterPlan:
    """What would run on a cluster: `slots` has the kind of machine of each, `blocks` how many of each kind."""

    planned: list[Planned]
    slots: Mapping[str, str]
    blocks: Mapping[str, int]

    def __str__(self) -> str:
        kinds = Counter(self.slots.values())
        where = listed([f"{number} with {kind}" for kind, number in kinds.most_common()])
        parts = listed([f"{number} to {kind}" for kind, number in self.blocks.items()])
        blocks = count(sum(self.blocks.values()), "block")
        return f"on {count(len(self.slots), 'slot')} ({where}): {blocks} ({parts})"


def preview_on_cluster(
    address: str,
    suite: Suite,
    registry: Registry,
    watcher: Watcher,
    data_dir: Path | str | None,
    *,
    time: bool,
    train: bool,
) -> ClusterPlan:
    """What `run` would do on the cluster of that address; raises as it does."""
    data_dir = None if data_dir is None else Path(data_dir).absolute()
    try:
        with (
            TemporaryDirectory() as scratch,
            RunStore.create(Path(scratch) / "dry run") as store,
            connected(address) as ray,
        ):
            grid = Grid(ray, suite, registry, store, watcher, data_dir)
            with closing(grid.run(time=time, train=train)) as steps:
                next(steps)  # it has planned, and nothing has begun
                return ClusterPlan(*grid.outline())
    finally:
        watcher.end()
