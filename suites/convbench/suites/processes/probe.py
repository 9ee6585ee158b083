"""Ask worker processes about the machine, the dataset, the backends and the networks, before anything is measured.

Plugin code does not run in this process: a plugin that hangs or crashes costs a sentence about itself, and not the
run. `convbench list` and `doctor` ask in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from convbench.registry import DataError, Plugin
from convbench.registry.hookspecs import PROJECT
from convbench.suites.processes.protocol import (
    Availability,
    AvailabilityJob,
    Event,
    Failed,
    FitJob,
    Loaded,
    Misfit,
    Note,
    Peak,
    PeaksJob,
    PluginsJob,
    Survey,
    SurveyJob,
)
from convbench.suites.processes.supervisor import ExitStatus, JobRunner, Supervisor

SURVEY_SECONDS = 600.0  # a first use may download the dataset
PEAKS_SECONDS = 60.0  # it takes one or two; a dtype that the device has to emulate, more
FIT_SECONDS = 60.0
AVAILABILITY_SECONDS = 60.0  # a backend may import a compiler, and a compiler start a GPU
LISTING_SECONDS = 10.0  # the same, while a person waits for a list

Say = Callable[[str], None]
Peaks = dict[str, dict[str, dict[str, float]]]  # by device and dtype


def survey(
    supervisor: JobRunner,
    dataset: str,
    data_dir: Path | str | None,
    say: Say = lambda text: None,
    distributions: tuple[str, ...] | None = None,
) -> Survey:
    """Have a worker describe the machine and write the dataset into the supervisor's data file.

    It loads the plugins of these distributions only, beside our own; all when None.

    Raises:
        DataError: the dataset cannot be loaded.
    """

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            say(event.text)

    root = None if data_dir is None else str(data_dir)
    job = SurveyJob(dataset=dataset, data_dir=root, distributions=distributions)
    ended = supervisor.run(job, SURVEY_SECONDS, on_event)
    if isinstance(ended.result, Survey):
        return ended.result
    if isinstance(ended.result, Failed) and ended.result.ours:
        raise DataError(ended.result.error)
    raise DataError(f"dataset {dataset!r} cannot be loaded: {_why(ended, 'the process that loads it')}")


def ask_availability(backends: Sequence[str]) -> dict[str, str]:
    """`find_unavailable` without a run: its workers come from a server that has not imported torch."""
    with TemporaryDirectory() as scratch, Supervisor(Path(scratch) / "log", preload=False) as supervisor:
        return find_unavailable(supervisor, backends, LISTING_SECONDS)


def ask_interference(plugins: Sequence[Plugin]) -> list[Plugin]:
    """The plugins with what loading them changes, of torch as well, which this process may not have imported."""
    if all(plugin.distribution == PROJECT for plugin in plugins):
        return list(plugins)  # our own change nothing
    with TemporaryDirectory() as scratch, Supervisor(Path(scratch) / "log") as supervisor:
        ended = supervisor.run(PluginsJob(), AVAILABILITY_SECONDS)
    changes = ended.result.changes if isinstance(ended.result, Loaded) else {}
    return [replace(plugin, changes=changes.get(plugin.name, plugin.changes)) for plugin in plugins]


def find_unavailable(
    supervisor: JobRunner,
    backends: Sequence[str],
    seconds: float | None = None,
    distributions: tuple[str, ...] | None = None,
) -> dict[str, str]:
    """Why backends cannot run here, by name; those that can are left out."""
    answers: dict[str, str | None] = {}
    seconds = AVAILABILITY_SECONDS if seconds is None else seconds

    def on_event(event: Event) -> None:
        if isinstance(event, Availability):
            answers[event.backend] = event.reason

    while waiting := [name for name in backends if name not in answers]:
        job = AvailabilityJob(backends=tuple(waiting), distributions=distributions)
        ended = supervisor.run(job, seconds, on_event)
        silent = next((name for name in waiting if name not in answers), None)
        if silent is not None:  # another worker asks the others
            reason = f"no answer within {seconds:g} s" if ended.code is None else _why(ended, "its process")
            answers[silent] = f"its check for availability failed: {reason}"
    return {name: reason for name, reason in answers.items() if reason is not None}


def find_misfits(
    supervisor: JobRunner, networks: Mapping[str, tuple[int, int, int]], num_classes: int
) -> dict[str, str]:
    """Why networks cannot take images of these shapes (C, H, W), by name; those that can are left out."""
    misfits: dict[str, str] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, Misfit):
            misfits[event.architecture] = event.error

    supervisor.run(FitJob(networks=networks, num_classes=num_classes), FIT_SECONDS, on_event)
    return misfits


def find_peaks(
    supervisor: JobRunner,
    wanted: Iterable[tuple[str, str]],
    say: Say,
    *,
    threads: int,
    memory_mb: int | None,
) -> Peaks:
    """The measured peaks of the (device, dtype) pairs that are wanted.

    A pair that cannot be measured is left out, with a note. The worker tries again, once, where other programs are
    in the way.
    """
    peaks: Peaks = {}
    for device, dtype in sorted(set(wanted)):
        limit = memory_mb if device == "cpu" else None
        job = PeaksJob(device=device, dtype=dtype, threads=threads, memory_mb=limit)
        ended = supervisor.run(job, PEAKS_SECONDS)
        if not isinstance(ended.result, Peak):
            say(f"no roofline for {dtype} on {device}: {_why(ended, 'the process that measures it')}")
            continue
        if ended.result.busy:
            say(f"other programs are running: the roofline of {dtype} on {device} may be too low")
        peaks.setdefault(device, {})[dtype] = dict(ended.result.peaks)
    return peaks


def _why(ended: ExitStatus, process: str) -> str:
    """Why a worker did not do its job."""
    return ended.result.error if isinstance(ended.result, Failed) else f"{process} {ended.description}"
