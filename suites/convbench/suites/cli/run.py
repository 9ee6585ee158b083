"""`convbench run`."""

from __future__ import annotations

import shlex
import signal
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from convbench.registry import Registry, UsageError, hookimpl
from convbench.registry.cli.completion import registered
from convbench.registry.errors import choices, shown
from convbench.suites.cli.options import allowed, many, warn_of_broken_plugins

Options = dict[str, Any]


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's command."""
    group.add_command(run)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """`5m` as 300.0."""
    from convbench.suites.config.durations import seconds_of

    try:
        return None if value is None else seconds_of(value)
    except UsageError as error:
        raise UsageError(f"{parameter.opts[0]}: {error}") from None


HELP = {
    "What to run": "suite architecture backend device dtype batch-size memory-format mode seed world-size fuse "
    "dataset set",
    "How long it may take": "budget budget-total timeout memory dry-run no-train no-time",
    "Training": "lr epochs data-dir",
    "Timing": "rounds max-rounds warmup-steps steps max-steps precision threads against pip-options",
    "Where it runs": "cluster",
    "Where results go": "out resume pytest-json open",
}


class GroupedHelp(click.Command):
    """A command whose help has its options in the groups of HELP; those of no group come last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            parameter.opts[0].removeprefix("--"): record
            for parameter in self.get_params(ctx)
            if (record := parameter.get_help_record(ctx)) is not None
        }
        grouped = {
            title: [records.pop(name) for name in names.split() if name in records]
            for title, names in HELP.items()
        }
        for title, found in {**grouped, "Other options": list(records.values())}.items():
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)


@click.command(cls=GroupedHelp)
@click.option(
    "--suite",
    metavar="NAME|FILE",
    shell_complete=registered("suites"),
    help="A registered suite, or a TOML file.",
)
@many(
    "--architecture",
    "Networks, as names or globs; repeat, or separate with commas.",
    complete=registered("architectures"),
)
@many("--backend", "Op backends, likewise.", complete=registered("backends"))
@many("--device", "Torch devices, such as cpu or cuda:0.")
@many("--dtype", "float32, tf32, float64, bfloat16 or float16.", complete=allowed("dtypes"))
@many("--batch-size", "Images per step.", numbers=True)
@many("--memory-format", "contiguous or channels_last.", complete=allowed("memory_formats"))
@many("--mode", "eager, compile or graph.", complete=allowed("modes"))
@many("--seed", "Seeds of weights and batch order.", numbers=True)
@many("--world-size", "Processes that train together, each on its share of a batch.", numbers=True)
@click.option("--fuse/--no-fuse", default=None, help="Compute neighbouring layers by a backend's fused ops.")
@click.option("--dataset", metavar="NAME", shell_complete=registered("datasets"), help="Dataset to train on.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--epochs", type=int, help="Epochs to train, unless the budget ends first.")
@click.option("--budget", type=float, metavar="SECONDS", help="Training time of one combination.")
@click.option(
    "--budget-total",
    metavar="TIME",
    callback=_seconds,
    help="Time of the whole run, such as 5m: the most informative parts come first.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="Time after which a process is killed.")
@click.option("--memory", type=int, metavar="MB", help="Memory a process may use.")
@click.option("--rounds", type=int, help="Timing processes per combination: exactly this many.")
@click.option("--max-rounds", type=int, help="At most this many, until the interval is narrow enough.")
@click.option("--warmup-steps", type=int, help="Steps before the timed ones.")
@click.option("--steps", type=int, help="Timed steps per process: exactly this many.")
@click.option("--max-steps", type=int, help="At most this many, until the interval is narrow enough.")
@click.option(
    "--precision", type=float, help="Half width of an interval that is narrow enough, as a share of the time."
)
@click.option("--threads", type=int, help="Torch's threads in every process.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any key of a suite file, such as recipe.resize=[56,56].",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where results go; a fresh directory by default."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Complete the run in DIR.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option(
    "--pytest-json",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the step times as a JSON file of pytest-benchmark.",
)
@click.option(
    "--against",
    metavar="PACKAGE",
    help="Measure another version too, interleaved: `fast==1.0`, a directory, a wheel, or git+URL@REF.",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Measure on a Ray cluster: its address, `auto` for the running one, `local` for this machine alone.",
)
@click.option(
    "--pip-options", default="", metavar="TEXT", help="Options for pip when it installs that version."
)
@click.option(
    "--open", "open_page", is_flag=True, help="Open the page of the run in a browser when it is done."
)
@click.option("--dry-run", is_flag=True, help="Show what would run, and stop.")
@click.option("--no-train", is_flag=True, help="Only verify and time.")
@click.option("--no-time", is_flag=True, help="Only verify and train.")
@click.pass_obj
def run(
    registry: Registry,
    /,
    suite: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    data_dir: Path | None,
    pytest_json: Path | None,
    against: str | None,
    pip_options: str,
    cluster: str | None,
    open_page: bool,
    dry_run: bool,
    no_train: bool,
    no_time: bool,
    **options: Any,
) -> None:
    """Verify, time and train every combination of a suite, and write its comparison table."""
    if out is not None and resume is not None:
        raise UsageError("--out and --resume exclude each other: a resumed run stays in its directory")
    if resume is not None and against is not None:
        raise UsageError("--against and --resume exclude each other: two versions are measured in one go")
    if pytest_json is not None and (no_time or against is not None):
        raise UsageError(f"--pytest-json and {'--no-time' if no_time else '--against'} exclude each other")
    if against is not None and options.get("budget_total") is not None:
        raise UsageError(
            "--against and --budget-total exclude each other: two versions need the same rounds, "
            "however long they take"
        )
    if cluster is not None and against is not None:
        raise UsageError(
            "--cluster and --against exclude each other: the other version is installed on this machine alone; "
            "run --against on each kind of machine"
        )
    if pip_options and against is None:
        raise UsageError("--pip-options are for --against, which is not given")
    if suite is None and resume is None:
        raise UsageError(f"--suite is missing; {choices('', registry.suites)}")
    if resume is not None and not (resume / "results.csv").is_file():
        raise UsageError(f"no run in {resume}: there is no results.csv")
    from convbench.suites.runner import run as runner
    from convbench.suites.runner.prepare import preview, resolve_suite
    from convbench.suites.runner.progress import watcher_for

    resolved = overridden(resolve_suite(suite, registry, resume), options, settings)
    warn_of_broken_plugins(registry, resolved.backends)
    if dry_run:
        if against is not None:
            from convbench.suites.runner.ab_run import for_two_versions

            resolved = for_two_versions(resolved)
        on_cluster = None
        if cluster is None:
            planned = preview(resolved, data_dir=data_dir, registry=registry, watcher=watcher_for())
        else:
            from convbench.suites.cluster.run import preview_on_cluster

            kinds = {
                "time": "time" in resolved.kinds and not no_time,
                "train": "train" in resolved.kinds and not no_train,
            }
            on_cluster = preview_on_cluster(cluster, resolved, registry, watcher_for(), data_dir, **kinds)
            planned = on_cluster.planned
        versions = 1 if against is None else 2
        _show_plan(planned, resolved, no_train, no_time, versions, on_cluster)
        return
    if pytest_json is not None:
        from convbench.results.report.write import check_writable

        check_writable(pytest_json)  # before hours of measuring, not after
    signal.signal(signal.SIGTERM, _interrupt)
    asked: Options = {
        "out": out,
        "data_dir": data_dir,
        "time": not no_time,
        "train": not no_train,
        "registry": registry,
        "watcher": watcher_for(),
    }
    if against is not None:
        from convbench.suites.runner.ab_run import run_against

        base, new = run_against(against, resolved, pip_options=_words(pip_options), **asked)
        _print_comparison(base.path, new.path, open_page)
        return
    result = runner.run(resolved, resume=resume, cluster=cluster, **asked)
    if pytest_json is not None:
        from convbench.results.storage.pytest_benchmark import write_pytest_benchmark

        click.echo(f"pytest-benchmark: {write_pytest_benchmark(result.path, pytest_json)}", err=True)
    _print_table(result.path, open_page)


def overridden(suite: Any, options: Options, settings: Iterable[str] = ()) -> Any:
    """The suite with the values of the command line; an error names the option."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, not {shown(setting)}")
        suite = suite.override({key.strip(): _toml_value(key, text)})
    for option, key in OPTION_KEYS.items():
        try:
            suite = suite.override({key: options.get(option.replace("-", "_"))})
        except UsageError as error:
            raise UsageError(f"--{option}{str(error).removeprefix(key)}") from None
    return suite


def _toml_value(key: str, text: str) -> Any:
    """What the text means in a TOML file; a text without quotes is itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    except (ValueError, RecursionError) as error:  # too many digits, or too many brackets, for Python
        reason = error if isinstance(error, ValueError) else "its brackets are nested too deeply"
        raise UsageError(f"--set {key}={shown(text)} cannot be read: {reason}") from None


OPTION_KEYS = {
    "architecture": "architectures",
    "backend": "backends",
    "device": "devices",
    "dtype": "dtypes",
    "batch-size": "batch_sizes",
    "memory-format": "memory_formats",
    "mode": "modes",
    "seed": "seeds",
    "world-size": "world_sizes",
    "fuse": "fuse",
    "dataset": "dataset",
    "lr": "recipe.lr",
    "epochs": "recipe.epochs",
    "budget": "budget.train_seconds",
    "budget-total": "budget.total_seconds",
    "timeout": "budget.timeout_seconds",
    "memory": "budget.memory_mb",
    "rounds": "timing.rounds",
    "max-rounds": "timing.max_rounds",
    "warmup-steps": "timing.warmup_steps",
    "steps": "timing.steps",
    "max-steps": "timing.max_steps",
    "precision": "timing.precision",
    "threads": "timing.threads",
}


def _show_plan(
    planned: list[Any], suite: Any, no_train: bool, no_time: bool, versions: int, on_cluster: Any
) -> None:
    from convbench.suites.runner.forecast import before_anything

    for entry in planned:
        status = f"{entry.obstacle[0]}: {entry.obstacle[1]}" if entry.obstacle else "to run"
        click.echo(f"{entry.combination.label}  {status}")
    kinds = ["verify"]
    timing = suite.timing
    upto = f" to {timing.max_rounds}" if (timing.max_rounds or 0) > timing.rounds else ""
    if time := "time" in suite.kinds and not no_time:
        kinds.append(f"time in {timing.rounds}{upto} rounds of {timing.steps} steps")
    if train := "train" in suite.kinds and not no_train:
        kinds.append(f"train for at most {suite.budget.train_seconds:g} s")
    each = "each" if versions == 1 else "each, for both versions"
    click.echo(f"{len(planned)} combination{'s' * (len(planned) != 1)}; {each}: {', '.join(kinds)}", err=True)
    slots = 1
    if on_cluster is not None:
        click.echo(str(on_cluster), err=True)
        slots = min(len(on_cluster.slots), sum(on_cluster.blocks.values())) or 1
    click.echo(before_anything(suite, planned * versions, time=time, train=train, slots=slots), err=True)


def _print_table(path: Path, open_page: bool) -> None:
    from convbench.registry.cli.terminal import console
    from convbench.results.report.write import show_page
    from convbench.results.tables.comparison_table import print_table

    print_table(console(), path)
    click.echo(f"table: {path / 'table.md'}", err=True)
    show_page(path / "report.html", open_page)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--pip-options is {text!r}, which is no command line: {error}") from None


def _print_comparison(base: Path, new: Path, open_pages: bool) -> None:
    from convbench.registry.cli.terminal import console
    from convbench.results.comparison.compare import compare
    from convbench.results.comparison.formats import as_table
    from convbench.results.report.write import show_page

    click.echo(as_table(compare(base, new), console().width), nl=False)
    for side in (base, new):
        show_page(side / "report.html", open_pages)
    click.echo(f"to gate on it: convbench compare {base} {new} --fail-if-slower 5%", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
