"""A run of as many combinations as one likes whose workers answer at once: what is left is convbench itself.

    python fake_sweep.py COMBINATIONS DIRECTORY

runs one in a process of its own, which its memory is then all of, and prints what it took as JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import dedent
from typing import Any
from unittest import mock

from convbench.results.schema import PHASES
from convbench.suites import Suite, run
from convbench.suites.config.suite import Budget, Timing
from convbench.suites.processes.protocol import (
    Availability,
    AvailabilityJob,
    CombinationJob,
    Done,
    EpochEnd,
    Event,
    FitJob,
    ImageFile,
    Job,
    Measured,
    Peak,
    PeaksJob,
    Result,
    Samples,
    Survey,
    SurveyJob,
    decode_event,
    decode_job,
    dumps,
    encode,
)
from convbench.suites.processes.supervisor import ExitStatus
from convbench.suites.runner.progress import Watcher

Sent = Event | Result
SIZES = {10: (5, 2), 100: (10, 10), 1000: (50, 20)}  # combinations: architectures times backends
STEPS, EPOCHS, ROUNDS = 30, 10, 3
PROCESSES = 2 + ROUNDS  # of one combination: verified, timed in rounds, trained

# networks and data so small that their own work is a few milliseconds
PLUGIN = """
    from convbench.registry import Architecture, Backend, Dataset, Images, Recipe, hookimpl

    def conv2d(*arguments, **options):
        import torch
        return torch.nn.functional.conv2d(*arguments, **options)

    def build(num_classes=10, in_channels=1):
        from torch import nn
        return nn.Sequential(nn.Conv2d(in_channels, 2, 3), nn.Flatten(), nn.Linear(72, num_classes))

    def load(root=None):
        import torch
        split = torch.zeros(32, 1, 8, 8, dtype=torch.uint8), torch.arange(32) % 10
        return Images("tiny", *split, *split)

    @hookimpl
    def convbench_backends():
        return [Backend(f"fake{number}", "a fake", load=lambda: {"conv2d": conv2d}) for number in range(20)]

    @hookimpl
    def convbench_architectures():
        recipe = Recipe(init="default")
        return [
            Architecture(f"tiny{number}", "a fake", build=build, input_shape=(1, 8, 8), recipe=recipe)
            for number in range(50)
        ]

    @hookimpl
    def convbench_datasets():
        return [Dataset("tiny", "a fake", load=load)]
"""


def install(site: Path) -> Path:
    """Write the plugin as pip would leave it, and return the directory to look for it in."""
    info = site / "tiny_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[convbench]\ntiny = plugin_of_fake_sweep\n")
    (site / "plugin_of_fake_sweep.py").write_text(dedent(PLUGIN))
    return site


class InstantSupervisor:
    """Answers every job at once with what a worker would send, through JSON as it comes through the pipe."""

    def __init__(self, log: Path, threads: int | None = None, first: Path | None = None) -> None:
        self.data = TemporaryFile()  # noqa: SIM115 - closed with the supervisor
        log.touch()
        self._answered = 0

    def run(
        self, job: Job, timeout: float, on_event: Callable[[Event], None] = lambda event: None
    ) -> ExitStatus:
        self._answered += 1
        job = decode_job(json.loads(dumps(encode(job))))
        answer = ANSWERS[job.kind if isinstance(job, CombinationJob) else type(job)]
        *events, result = (decode_event(json.loads(dumps(encode(each)))) for each in answer(self, job))
        for event in events:
            on_event(event)  # type: ignore[arg-type]  # only the last one is a result
        return ExitStatus(0, result)  # type: ignore[arg-type]

    def __enter__(self) -> InstantSupervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    def survey(self, job: SurveyJob) -> Iterator[Sent]:
        shapes = dict.fromkeys(("train_images", "test_images"), (60000, 1, 28, 28))
        environment = {"machine_id": "0123456789ab", "logical_cores": 2}
        yield Survey(environment, "2.11.0", {"cpu": "a processor"}, ImageFile("tiny", shapes))

    def fit(self, job: FitJob) -> Iterator[Sent]:
        yield Done()

    def availability(self, job: AvailabilityJob) -> Iterator[Sent]:
        for name in job.backends:
            yield Availability(name, None)
        yield Done()

    def peaks(self, job: PeaksJob) -> Iterator[Sent]:
        yield Peak({"gflops_per_second": 100.0, "gb_per_second": 20.0}, busy=False)

    def verify(self, job: CombinationJob) -> Iterator[Sent]:
        measures = {
            "parameters": 61706,
            "flops_per_image": 833040.0,
            "step_flops_per_image": 2499120.0,
            "step_bytes_per_image": 600000.0,
            "arithmetic_intensity": 4.2,
            "roofline_step_ms": 3.2,
            "served_calls": 4,
            "served_flops_fraction": 1.0,
            "served": "conv2d 2/2, avg_pool2d 2/2",
            "served_flops": "conv2d 1, avg_pool2d 1",
            "supported_ops": "conv2d, max_pool2d, avg_pool2d",
            "max_error": 3e-7,
            "threads": 2,
            "flush_denormal": 1,
        }
        yield Measured("ok", measures=measures)

    def time(self, job: CombinationJob) -> Iterator[Sent]:
        base = 5.0 + self._answered % 17
        times = tuple(base + 0.01 * (number * 7 % 11) for number in range(STEPS))
        yield Samples(times, {name: tuple(time / len(PHASES) for time in times) for name in PHASES})
        measures = {"steps": STEPS, "setup_seconds": 1.0, "compile_seconds": 0.5, "peak_memory_mb": 300.0}
        yield Measured("ok", measures={**measures, "threads": 2})

    def train(self, job: CombinationJob) -> Iterator[Sent]:
        for number in range(1, EPOCHS + 1):
            yield EpochEnd(
                epoch=float(number),
                steps=469 * number,
                train_images_seen=60000 * number,
                train_seconds=3.5 * number,
                train_loss=2.3 / number,
                val_loss=2.3 / number,
                val_accuracy=0.9 - 0.8 / number,
            )
        measures = {"epochs": 10.0, "steps": 4690, "train_seconds": 35.0, "images_per_second": 17000.0}
        yield Measured("ok", measures=measures)


ANSWERS: dict[object, Callable[[InstantSupervisor, Any], Iterator[Sent]]] = {
    SurveyJob: InstantSupervisor.survey,
    AvailabilityJob: InstantSupervisor.availability,
    FitJob: InstantSupervisor.fit,
    PeaksJob: InstantSupervisor.peaks,
    "verify": InstantSupervisor.verify,
    "time": InstantSupervisor.time,
    "train": InstantSupervisor.train,
}


class Stages(Watcher):
    """What this process had taken, workers apart, when it began to measure and when it had ended."""

    def __init__(self) -> None:
        self.began = self.ended = taken()
        self.rows = 0

    def begin(self, tasks: Any, kept: int) -> None:
        self.began = taken()

    def finish(self, task: Any, row: Any) -> None:
        assert row.status == "ok", row.error
        self.rows += 1

    def stage(self, text: str) -> None:
        if text.startswith("writing"):  # what was measured is complete
            self.ended = taken()


def taken() -> dict[str, float]:
    """Seconds of processor time, and the most memory at a time.

    Not `ru_maxrss`, which begins at that of whoever started the process.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return {"seconds": time.process_time(), "peak_mb": int(kilobytes) * 1024 / 1e6}


def suite_of(combinations: int) -> Suite:
    """So many combinations of fakes."""
    architectures, backends = SIZES[combinations]
    return Suite(
        name="sweep",
        dataset="tiny",
        architectures=tuple(f"tiny{number}" for number in range(architectures)),
        backends=tuple(f"fake{number}" for number in range(backends)),
        devices=("cpu",),
        batch_sizes=(16,),
        budget=Budget(memory_mb=4000),
        timing=Timing(rounds=ROUNDS, warmup_steps=1, steps=STEPS, threads=1, quiet_seconds=0.0),
    )


def main() -> None:
    combinations, directory = int(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(install(directory / "site")))
    stages = Stages()
    with mock.patch("convbench.suites.runner.run.Supervisor", InstantSupervisor):
        run(suite_of(10), out=directory / "warm-up", watcher=Watcher())  # imports, templates, what is cached
        before = taken()
        run(suite_of(combinations), out=directory / "run", watcher=stages)
    after = taken()
    found = {
        "before": before,
        "began": stages.began,
        "ended": stages.ended,
        "after": after,
        "rows": stages.rows,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
