"""Before the first task: check the suite, find what can run on this machine, and measure its peaks."""

from __future__ import annotations

import os
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
from convbench.suites.processes.protocol import Survey
from convbench.suites.processes.supervisor import JobRunner, Supervisor
from convbench.suites.runner.progress import Watcher

THREADS_PER_CORE = 8  # at most; more is taken for a typing error


def resolve_suite(
    suite: Suite | Path | str | None, registry: Registry, resume: Path | str | None = None
) -> Suite:
    """A suite from itself, its file, its name, or the run that is resumed.

    Raises:
        UsageError: there is no such suite, or the run is that of another one.
    """
    file = None if resume is None else Path(resume) / "suite.toml"
    if suite is None:
        if file is None:
            raise UsageError("no suite is given, nor a run to resume")
        suite = file
    if isinstance(suite, str):
        is_file = suite.endswith(".toml") or os.sep in suite
        suite = Path(suite) if is_file else registry.suite(suite)
    if isinstance(suite, Path):
        suite = load_suite(suite)
    if file is not None and file.is_file() and (name := load_suite(file).name) != suite.name:
        raise UsageError(
            f"{resume} is a run of suite {name!r}, not of {suite.name!r}; resume it without --suite, or give "
            "the other suite a directory of its own"
        )
    return suite


def checked_suite(
    suite: Suite | Path | str | None, registry: Registry, resume: Path | str | None = None
) -> Suite:
    """A suite whose names are registered and whose values can be used; raises UsageError."""
    suite = resolve_suite(suite, registry, resume)
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


def plan_here(suite: Suite, registry: Registry, supervisor: JobRunner, survey: Survey) -> list[Planned]:
    """Every combination of the suite, and why some cannot run on this machine with this data.

    Raises:
        UsageError: a batch size or a translation that does not fit the data.
    """
    backends = registry.backends.matching(suite.backends)
    sources = registry.backends.distributions(*backends)
    unavailable = probe.find_unavailable(supervisor, backends, distributions=sources)
    planned = plan(suite, registry, list(survey.devices), unavailable)
    if unlike := unlike_images(planned, registry, survey.image_shape):
        misfits = probe.find_misfits(supervisor, unlike, registry.dataset(suite.dataset).num_classes)
        planned = with_misfits(planned, registry, misfits, survey.images.name, survey.image_shape)
    check_batch_sizes(planned, survey.train_images, survey.images.name)
    check_translation(suite.test_translation_px, survey.image_size, survey.images.name)
    return planned


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
            sources = registry.datasets.distributions(suite.dataset)
            survey = probe.survey(supervisor, suite.dataset, data_dir, distributions=sources)
            return plan_here(suite, registry, supervisor, survey)
    finally:
        watcher.end()
