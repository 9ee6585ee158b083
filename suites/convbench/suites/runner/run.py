"""Run a suite: verify, time and train every combination, each in a worker process of its own."""

from __future__ import annotations

import json
import math
import shlex
import time as clock
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from convbench.registry import ConvbenchError, NothingRan, Registry, UsageError, discover
from convbench.results.analysis.display import ShownRows
from convbench.results.schema import Row
from convbench.results.storage.store import RunStore
from convbench.suites.config.plan import check_possible
from convbench.suites.config.suite import Suite
from convbench.suites.machine.resources import free_memory_mb, usable_cores
from convbench.suites.processes import probe
from convbench.suites.processes.supervisor import Supervisor
from convbench.suites.processes.versions import OtherVersion
from convbench.suites.runner.agenda import Agenda, slot
from convbench.suites.runner.forecast import Forecast
from convbench.suites.runner.prepare import checked_suite, plan_here
from convbench.suites.runner.progress import Watcher
from convbench.suites.runner.quiet import Quiet
from convbench.suites.runner.recorder import Circumstances, Recorder
from convbench.suites.runner.schedule import Task, left_alone, planned_processes, schedule, still_valid
from convbench.suites.runner.task import RunContext

WAITED_SHARE = 0.1  # of a total budget: at most for other programs to end
OUTLOOK_SECONDS = 1.0  # between two forecasts of the rest, at least
OUTLOOK_SHARE = 0.02  # of the run's time: what forecasts may take


@dataclass(frozen=True, repr=False)
class RunResult(ShownRows):
    """A finished run: its directory and its rows."""

    path: Path
    rows: tuple[Row, ...]

    @property
    def measured(self) -> tuple[Row, ...]:
        """The rows that carry a measurement."""
        return tuple(row for row in self.rows if row.is_measured)


def run(
    suite: Suite | Path | str | None = None,
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    data_dir: Path | str | None = None,
    time: bool = True,
    train: bool = True,
    registry: Registry | None = None,
    watcher: Watcher | None = None,
    cluster: str | None = None,
) -> RunResult:
    """Run a suite and write its results directory.

    Args:
        suite: a suite, the path of a TOML file, or the name of a registered suite; that of the resumed run
            when None.
        out: the directory to write; `results/<suite>-<UTC time>` when None.
        resume: a directory whose run is to be completed; what was measured there under the same circumstances
            is kept, and so is what this run is not about; everything else is measured again.
        data_dir: where the dataset is.
        time: measure step times.
        train: train.
        registry: what is registered; discovered when None.
        watcher: told what happens.
        cluster: the address of a Ray cluster that measures, `auto` for the one that this machine belongs to,
            `local` for one of this machine alone; no Ray when None.

    Raises:
        UsageError: a name, value or directory that cannot be used.
        NothingRan: not one combination could be measured. The rows say why.
        KeyboardInterrupt: interrupted; what was measured is kept.
    """
    steps = Run(suite, out, resume, data_dir, time, train, registry, watcher, cluster=cluster).steps()
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: RunResult = stop.value
            return result


@dataclass
class Run:
    """A run that goes on step by step; the arguments of `run`, and two of a run on two versions.

    Attributes:
        run_id: under which its rows are known; the name of its directory when None.
        other: the version of a package that its workers find in place of the installed one.
    """

    suite: Suite | Path | str | None
    out: Path | str | None = None
    resume: Path | str | None = None
    data_dir: Path | str | None = None
    time: bool = True
    train: bool = True
    registry: Registry | None = None
    watcher: Watcher | None = None
    run_id: str | None = None
    other: OtherVersion | None = None
    cluster: str | None = None

    def steps(self) -> Generator[None, None, RunResult]:
        """Yield before the first process and after each; returns what `run` returns."""
        registry, watcher = self.registry or discover(), self.watcher or Watcher()
        suite = checked_suite(self.suite, registry, self.resume)
        if self.resume is not None and self.cluster is None:
            _check_resumed_here(Path(self.resume))
        store, made = (
            (RunStore.open(self.resume), []) if self.resume is not None else _create_store(suite, self.out)
        )
        with store:
            try:
                yield from self._measured(suite, registry, store, watcher)
            except (ConvbenchError, KeyboardInterrupt) as error:
                empty = self.resume is None and not store.rows()
                if empty:
                    _remove(store.path, made)
                else:
                    watcher.stage("writing the tables and the report of what was measured")
                    try:
                        _write_pages(store)
                    except ConvbenchError as second:
                        watcher.note(str(second))
                watcher.end()
                if isinstance(error, KeyboardInterrupt):
                    watcher.note(_interrupted(None if empty else store.path))
                raise
            else:
                watcher.stage("writing the tables and the report")
                _write_pages(store)
            finally:
                watcher.end()
            result = RunResult(store.path, tuple(store.rows()))
        if not result.measured:
            raise NothingRan(f"nothing could be measured; {result.path}/results.csv says why")
        return result

    def _measured(
        self, suite: Suite, registry: Registry, store: RunStore, watcher: Watcher
    ) -> Generator[None, None, None]:
        """Measure on this machine, or on a cluster."""
        if self.cluster is not None:
            from convbench.suites.cluster.run import run_on_cluster

            yield from run_on_cluster(
                self.cluster,
                suite,
                registry,
                store,
                watcher,
                self.data_dir,
                time=self.time and "time" in suite.kinds,
                train=self.train and "train" in suite.kinds,
            )
            return
        suite = suite.override({"timing.threads": suite.timing.threads or usable_cores()})
        watcher.stage("starting the process that measures")
        first = self.other.path if self.other else None
        with Supervisor(store.path / "run.log", suite.timing.threads, first) as supervisor:
            yield from self._measure(suite, registry, supervisor, store, watcher)

    def _measure(
        self, suite: Suite, registry: Registry, supervisor: Supervisor, store: RunStore, watcher: Watcher
    ) -> Generator[None, None, None]:
        """Survey, plan, schedule and write down what is to be run; then run it, task by task."""
        watcher.stage("looking at the machine and the data")
        sources = registry.datasets.distributions(suite.dataset)
        survey = probe.survey(supervisor, suite.dataset, self.data_dir, watcher.note, sources)
        began = (
            clock.monotonic()
        )  # of a total budget: to download the data may take longer than all of the run
        watcher.stage("asking the backends whether they can run here")
        planned = plan_here(suite, registry, supervisor, survey)
        if not store.rows():  # of a run that is resumed there is something to show
            check_possible(planned)
        watcher.note(f"results go to {store.path}")
        suite = suite.override({"budget.memory_mb": suite.budget.memory_mb or free_memory_mb()})
        time, train = self.time and "time" in suite.kinds, self.train and "train" in suite.kinds
        watcher.stage("measuring what the machine could do at most")
        to_run = [entry.combination for entry in planned if entry.obstacle is None and (time or train)]
        peaks = probe.find_peaks(
            supervisor,
            [(combination.device, combination.dtype) for combination in to_run],
            watcher.note,
            threads=suite.timing.threads or usable_cores(),
            memory_mb=suite.budget.memory_mb,
        )
        facts = Circumstances.of_run(registry, survey, self.other)
        # the two sides of an A/B run have the same order
        seed = store.path.name if self.run_id is None else store.path.absolute().parent.name
        tasks = schedule(suite, planned, facts.of_combination, seed, time=time, train=train)
        kept, others = still_valid(store.rows(), tasks), left_alone(store.rows(), tasks)
        environment = {
            **survey.environment,
            "peaks": peaks,
            "planned_processes": planned_processes(tasks, others),
        }
        if self.other is not None:
            versions = dict(self.other.versions)
            environment["in_place_of_the_installed"] = {"package": self.other.package, "versions": versions}
        store.write("environment.json", json.dumps(environment, indent=2) + "\n")
        store.write("suite.toml", suite.to_toml())
        store.keep(others + kept)
        context = RunContext(
            suite=suite,
            survey=survey,
            peaks=peaks,
            num_classes=registry.dataset(suite.dataset).num_classes,
            supervisor=supervisor,
            recorder=Recorder(suite, store, facts, self.run_id),
            watcher=watcher,
        )
        agenda = _agenda(context, tasks, kept, began)
        yield
        yield from _run_agenda(agenda, context)


def _agenda(context: RunContext, tasks: Sequence[Task], kept: Sequence[Row], began: float) -> Agenda:
    """The agenda of a run; the rows that are kept are done."""
    suite, survey = context.suite, context.survey
    forecast = Forecast(suite, survey.train_images, survey.test_images)
    forecast.learn(kept)
    done = [(row.kind, row.round, row.combination) for row in kept]
    certain = [task for task in tasks if not task.optional]
    context.watcher.begin(certain, len(certain) - len({slot(task) for task in certain}.difference(done)))
    return Agenda(
        suite,
        tasks,
        forecast,
        blocked=lambda task: context.obstacle(task) is not None,
        timed=context.recorder.timed,
        done=done,
        deadline=_deadline(suite, began, kept),
        order=count(1 + max((row.order or 0 for row in kept), default=-1)),
    )


def _run_agenda(agenda: Agenda, context: RunContext) -> Generator[None, None, None]:
    """Run what an agenda hands out, one process at a time, and none while other programs are busy."""
    suite, watcher = context.suite, context.watcher
    limit = suite.timing.quiet_seconds
    if suite.budget.total_seconds is not None:
        limit = min(limit, WAITED_SHARE * suite.budget.total_seconds)
    quiet = Quiet(limit, watcher)
    look_at = 0.0
    while (task := agenda.next()) is not None:
        if (now := clock.monotonic()) >= look_at:
            watcher.outlook(agenda.outlook())
            took = clock.monotonic() - now
            look_at = now + max(OUTLOOK_SECONDS, took / OUTLOOK_SHARE)
        blocked = context.obstacle(task) is not None
        if task.kind != "verify" and not blocked:
            quiet.wait()
        row = context.run(task, agenda.timeout())
        if not blocked:
            agenda.forecast.learn([row])
            quiet.learn(row)
        yield
    context.leave_out(agenda.left_out())


def _deadline(suite: Suite, began: float, kept: Sequence[Row]) -> float:
    """When the total budget ends; what a resumed run took before is spent."""
    if suite.budget.total_seconds is None:
        return math.inf
    return began + suite.budget.total_seconds - sum(row.process_seconds or 0.0 for row in kept)


def _check_resumed_here(directory: Path) -> None:
    """Refuse to go on here with a run of a cluster: everything would be measured again."""
    try:
        environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(environment, dict) and environment.get("nodes"):
        raise UsageError(f"{directory} is a run on a cluster; --cluster ADDRESS goes on with it")


def directory_of(suite: Suite, out: Path | str | None) -> Path:
    """Where a new run goes: `out`, or a directory named by suite and time."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path(out) if out is not None else Path("results") / f"{suite.name}-{stamp}"


def _create_store(suite: Suite, out: Path | str | None) -> tuple[RunStore, list[Path]]:
    """The store of a new run, and the directories that were made for it, inner ones first."""
    wanted = directory_of(suite, out)
    made = [path for path in (wanted, *wanted.parents) if not path.exists()]
    store = RunStore.create(wanted, exact=out is not None)
    return store, made if store.path == wanted else [store.path]  # another run had taken that name


def _interrupted(kept: Path | None) -> str:
    if kept is None:
        return "interrupted before anything was measured"
    return (
        f"interrupted; what was measured is kept in {kept}; to go on: convbench run --resume "
        f"{shlex.quote(str(kept))}"
    )


def _remove(path: Path, made: Sequence[Path]) -> None:
    """Remove the files of a run without rows, and the directories that were made for it."""
    with suppress(OSError):
        for file in path.iterdir():
            file.unlink()
        for directory in made:  # inner ones first; not one in which another run has begun
            directory.rmdir()


def _write_pages(store: RunStore) -> None:
    from convbench.results.report.write import write_all

    try:
        write_all(store.path)
    except UsageError as error:  # the disk is full, say
        raise ConvbenchError(
            f"{error}; every row is kept, and `convbench report {shlex.quote(str(store.path))}` writes the pages"
        ) from None
