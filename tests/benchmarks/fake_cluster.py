"""A run of 10,000 combinations on a hundred machines that answer at once: what is left is the driver.

    python fake_cluster.py DIRECTORY

runs it in a process of its own, which its memory is then all of, and prints what it took as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from convbench.registry import discover
from convbench.results.storage.store import RunStore
from convbench.suites import Suite
from convbench.suites.cluster import grid
from convbench.suites.config.suite import Budget, RecipeOverrides, Timing
from fake_machines import Machine, Notes, Ray

MACHINES = 100
SUITE = Suite(
    name="large",
    dataset="fashion-mnist-sample",
    architectures=("lenet", "mlp"),
    backends=("im2col", "torch"),
    devices=("cpu",),
    batch_sizes=tuple(range(40, 65)),
    seeds=tuple(range(100)),
    recipe=RecipeOverrides(epochs=1),
    budget=Budget(train_seconds=0.5, timeout_seconds=100.0),
    timing=Timing(rounds=3, warmup_steps=1, steps=3, quiet_seconds=0),
)


def main(directory: Path) -> None:
    ray = Ray(*(Machine(str(number)) for number in range(MACHINES)))
    grid.RemoteNode = ray.node  # type: ignore[assignment,misc]
    with RunStore.create(directory) as store:
        steps = grid.Grid(ray, SUITE, discover(installed=()), store, Notes(), None).run(time=True, train=True)
        began = time.process_time()
        next(steps)  # it has planned
        planned = time.process_time()
        for _ in steps:
            pass
        ended = time.process_time()
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        rows = store.rows()
    found = {
        "combinations": len({row.combination for row in rows}),
        "rows": len(rows),
        "ok": sum(row.status == "ok" for row in rows),
        "machines": len({row.node for row in rows}),
        "plan_seconds": planned - began,
        "run_seconds": ended - planned,
        "peak_mb": peak_mb,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
