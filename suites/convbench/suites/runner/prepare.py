"""Before the first task: check the suite, find what can run on this machine, and measure its peaks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from convbench.registry import Registry, UsageError, discover
from convbench.suites.config.plan import (
    Planned,
    check_batch_sizes,
    check_translation,
    plan,
    unlike_images,
    with_misfits,
)
from convbench.suites.config.suite import Suite, load_suite
from convbench.suites.machine.resources import usable_cores
from convbench.suites.processes import probe
from convbench.suites.processes.probe import Peaks
from convbench.suites.processes.protocol import Survey
from convbench.suites.processes.supervisor import Supervisor
from convbench.suites.runner.progress import Watcher

THREADS_PER_CORE = 8  # at most; more is taken for a typing error


def resolve_suite(suite: Suite | Path | str, registry: Registry) -> Suite:
    """A suite from itself, its file or its name; raises UsageError."""
    if isinstance(suite, Suite):
        return suite
    if isinstance(suite, Path) or suite.endswith(".toml") or os.sep in suite:
        return load_suite(Path(suite))
    return load_suite(registry.suite(suite))


def checked_suite(suite: Suite | Path | str, registry: Registry) -> Suite:
    """A suite whose names are registered and whose values can be used; raises UsageError."""
    suite = resolve_suite(suite, registry)
    suite.check()
    registry.architectures.matching(suite.architectures)
    registry.backends.matching(suite.backends)
    registry.dataset(suite.dataset)
    cores = usable_cores()
    if (suite.timing.threads or 1) > cores * THREADS_PER_CORE:
        raise UsageError(
            f"timing.threads is {suite.timing.threads}; it must be at most {cores * THREADS_PER_CORE}, "
            f"{THREADS_PER_CORE} for each of the cores that can be used here"
        )
    return suite


def check_resumed(suite: Suite, directory: Path) -> None:
    """Refuse to make the run of one suite into that of another; raises UsageError."""
    file = directory / "suite.toml"
    if not file.is_file():  # it ended before it had one
        return
    name = load_suite(file).name
    if name != suite.name:
        raise UsageError(
            f"{directory} is a run of suite {name!r}, not of {suite.name!r}; resume it without --suite, or give "
            "the other suite a directory of its own"
        )


def plan_here(suite: Suite, registry: Registry, supervisor: Supervisor, survey: Survey) -> list[Planned]:
    """Every combination of the suite, and why some cannot run on this machine with this data.

    Raises:
        UsageError: a batch size or a translation that does not fit the data.
    """
    unavailable = probe.find_unavailable(supervisor, registry.backends.matching(suite.backends))
    planned = plan(suite, registry, list(survey.devices), unavailable)
    if unlike := unlike_images(planned, registry, survey.image_shape):
        misfits = probe.find_misfits(supervisor, unlike, registry.dataset(suite.dataset).num_classes)
        planned = with_misfits(planned, registry, misfits, survey.images.name, survey.image_shape)
    check_batch_sizes(planned, survey.train_images, survey.images.name)
    check_translation(suite.test_translation_px, survey.image_size, survey.images.name)
    return planned


def peaks_of(suite: Suite, supervisor: Supervisor, watcher: Watcher, planned: Sequence[Planned]) -> Peaks:
    """The peaks of every device and dtype that something is to run on."""
    to_run = [entry.combination for entry in planned if entry.obstacle is None]
    return probe.find_peaks(
        supervisor,
        [(combination.device, combination.dtype) for combination in to_run],
        watcher.note,
        threads=suite.timing.threads or usable_cores(),
        memory_mb=suite.budget.memory_mb,
    )


def preview(
    suite: Suite | Path | str,
    *,
    data_dir: Path | str | None = None,
    registry: Registry | None = None,
    watcher: Watcher | None = None,
) -> list[Planned]:
    """What `run` would measure, without measuring; raises as it does."""
    registry = registry or discover()
    watcher = watcher or Watcher()
    suite = checked_suite(suite, registry)
    watcher.stage("looking at the machine, the data and the backends")
    try:
        with TemporaryDirectory() as scratch, Supervisor(Path(scratch) / "run.log") as supervisor:
            survey = probe.survey(supervisor, suite.dataset, data_dir)
            return plan_here(suite, registry, supervisor, survey)
    finally:
        watcher.end()
