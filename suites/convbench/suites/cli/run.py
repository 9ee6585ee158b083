"""The commands that measure: `convbench run` and `convbench verify`."""

from __future__ import annotations

import shlex
import signal
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convbench.registry import GateFailed, NothingRan, Registry, UsageError, hookimpl
from convbench.registry.conformance.report import GENERATED, grouped
from convbench.registry.errors import choices, shown

if TYPE_CHECKING:
    from convbench.suites.processes.verification import Verification

LISTED = 10  # cases of a backend that failed

Options = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's commands."""
    group.add_command(run)
    group.add_command(verify)


def _split(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """`--backend a,b --backend c` as a list; None where the option is not given."""
    items = [item.strip() for value in values for item in value.split(",")]
    named = [item for item in items if item]
    if values and not named:  # everything would be run
        raise UsageError(f"{parameter.opts[0]} {','.join(values)!r} names nothing")
    return named or None


def _whole_numbers(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> list[int] | None:
    items = _split(context, parameter, values)
    try:
        return None if items is None else [int(item) for item in items]
    except ValueError:
        name = parameter.opts[0]
        raise UsageError(f"{name} takes whole numbers, not {items}") from None


def _many(name: str, help: str, numbers: bool = False) -> Callable[[F], F]:
    callback = _whole_numbers if numbers else _split
    metavar = "N" if numbers else "NAME"
    return click.option(name, multiple=True, metavar=metavar, callback=callback, help=help)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """`5m` as 300.0."""
    from convbench.suites.config.durations import seconds_of

    try:
        return None if value is None else seconds_of(value)
    except UsageError as error:
        raise UsageError(f"{parameter.opts[0]}: {error}") from None


HELP = {
    "What to run": "suite architecture backend device dtype batch-size memory-format mode seed fuse dataset set",
    "How long it may take": "budget budget-total timeout memory dry-run no-train no-time",
    "Training": "lr epochs data-dir",
    "Timing": "rounds max-rounds warmup-steps steps max-steps precision threads against pip-options",
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
@click.option("--suite", metavar="NAME|FILE", help="A registered suite, or a TOML file.")
@_many("--architecture", "Networks, as names or globs; repeat, or separate with commas.")
@_many("--backend", "Op backends, likewise.")
@_many("--device", "Torch devices, such as cpu or cuda:0.")
@_many("--dtype", "float32, tf32, float64, bfloat16 or float16.")
@_many("--batch-size", "Images per step.", numbers=True)
@_many("--memory-format", "contiguous or channels_last.")
@_many("--mode", "eager, compile or graph.")
@_many("--seed", "Seeds of weights and batch order.", numbers=True)
@click.option("--fuse/--no-fuse", default=None, help="Compute neighbouring layers by a backend's fused ops.")
@click.option("--dataset", metavar="NAME", help="Dataset to train on.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--epochs", type=int, help="Epochs to train, unless the budget ends first.")
@click.option("--budget", type=float, metavar="SECONDS", help="Training time of one combination.")
@click.option(
    "--budget-total",
    metavar="TIME",
    callback=_seconds,
    help="Time of the whole run, such as 5m: what tells most comes first, and what is left out is named.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="When a process is ended.")
@click.option("--memory", type=int, metavar="MB", help="Memory a process may take.")
@click.option("--rounds", type=int, help="Timing processes per combination; exactly so many.")
@click.option("--max-rounds", type=int, help="Up to so many, until the interval is tight.")
@click.option("--warmup-steps", type=int, help="Steps before the timed ones.")
@click.option("--steps", type=int, help="Timed steps per process; exactly so many.")
@click.option("--max-steps", type=int, help="Up to so many, until the interval is tight.")
@click.option("--precision", type=float, help="Half width of a tight interval, as a share of the time.")
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
@click.option("--pip-options", default="", metavar="TEXT", help="Of pip, when it installs that version.")
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
    if pip_options and against is None:
        raise UsageError("--pip-options are for --against, which is not given")
    if suite is None and resume is None:
        raise UsageError(f"--suite is missing; {choices('', registry.suites)}")
    if resume is not None and not (resume / "results.csv").is_file():
        raise UsageError(f"no run in {resume}: there is no results.csv")
    from convbench.suites.runner import run as runner
    from convbench.suites.runner.progress import watcher_for

    chosen = suite if suite is not None else (resume or Path()) / "suite.toml"
    resolved = overridden(runner.resolve_suite(chosen, registry), options, settings)
    _warn_of_broken_plugins(registry, resolved.backends)
    if resume is not None:
        runner.check_resumed(resolved, resume)
    if dry_run:
        planned = runner.preview(resolved, data_dir=data_dir, registry=registry, watcher=watcher_for())
        _show_plan(planned, resolved, no_train, no_time)
        return
    if pytest_json is not None:
        from convbench.results.report.write import check_writable

        check_writable(pytest_json)  # before hours of measuring, not after
    signal.signal(signal.SIGTERM, _interrupt)
    if against is not None:
        from convbench.suites.runner.ab_run import run_against

        base, new = run_against(
            against,
            resolved,
            out=out,
            pip_options=_words(pip_options),
            data_dir=data_dir,
            time=not no_time,
            train=not no_train,
            registry=registry,
            watcher=watcher_for(),
        )
        _print_comparison(base.path, new.path, open_page)
        return
    result = runner.run(
        resolved,
        out=out,
        resume=resume,
        data_dir=data_dir,
        time=not no_time,
        train=not no_train,
        registry=registry,
        watcher=watcher_for(),
    )
    if pytest_json is not None:
        from convbench.results.storage.pytest_benchmark import write_pytest_benchmark

        click.echo(f"pytest-benchmark: {write_pytest_benchmark(result.path, pytest_json)}", err=True)
    _print_table(result.path, open_page)


def overridden(suite: Any, options: Options, settings: Iterable[str] = ()) -> Any:
    """The suite with what the command line says; a value that cannot be used is named by its option."""
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


@click.command()
@click.argument("backends", nargs=-1, metavar="[BACKEND]...")
@click.option("--device", default="cpu", show_default=True, help="The torch device to run on.")
@_many("--dtype", "Dtypes to check; every one a backend claims by default.")
@click.option(
    "--cases",
    type=click.IntRange(min=0),
    default=GENERATED,
    show_default=True,
    metavar="N",
    help="Generated cases of every op and dtype, beside the curated ones.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of generated cases and random data."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="When one is ended.",
)
@click.option("--verbose", is_flag=True, help="List every case that failed, and what is unsupported.")
@click.pass_obj
def verify(
    registry: Registry,
    /,
    backends: tuple[str, ...],
    device: str,
    dtype: list[str] | None,
    cases: int,
    seed: int,
    timeout: float,
    verbose: bool,
) -> None:
    """Hold backends against the float64 reference: forward, gradients, bad arguments. Exits 1 if one fails.

    Of what fails, the first case of each kind is shrunk to the smallest one that fails, and printed as Python
    that shows the failure again.
    """
    from convbench.suites.processes.verification import verify_backends

    _warn_of_broken_plugins(registry, backends or ("*",))
    results = verify_backends(
        registry,
        backends or ("*",),
        device=device,
        dtypes=dtype,
        timeout=timeout,
        generated=cases,
        seed=seed,
    )
    for result in results:
        click.echo(result.line)
        for outcome in result.first_failures:
            fault = f" ({outcome.known_fault})" if outcome.known_fault else ""
            click.echo(f"\n# {outcome.state}{fault}: {outcome.case}\n{outcome.reproduction}\n")
        _list_outcomes(result, verbose)
        for name, number in result.report.faults_not_shown.items():
            click.echo(f"    {name}: it does not show in any of {number} cases")
    wrong = [
        result.backend for result in results if result.status not in ("ok", "unavailable", "unsupported")
    ]
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(results)} backends failed: {', '.join(wrong)}")
    if not any(result.status == "ok" for result in results):
        raise NothingRan(f"no backend could be verified on {device}")


def _warn_of_broken_plugins(registry: Registry, patterns: Iterable[str]) -> None:
    """A broken plugin is missing from what a pattern such as `*` takes; a name that it misses is an error."""
    if any(set(pattern) & set("*?[") for pattern in patterns):
        for plugin in registry.broken:
            click.echo(f"warning: {plugin.fault}", err=True)


def _list_outcomes(result: Verification, verbose: bool) -> None:
    """What did not pass, a line each, first what there is Python for; unless verbose not more than a few."""
    first = result.first_failures
    rest = [outcome for outcome in result.outcomes if outcome.state != "passed" and outcome not in first]
    listed = [outcome for outcome in first + rest if outcome.state != "unsupported" or verbose]
    groups = [[outcome] for outcome in listed] if verbose else grouped(listed)[:LISTED]
    for outcome, *like_it in groups:
        smaller = f" (the smallest; it was {outcome.shrunk_from})" if outcome.shrunk_from else ""
        fault = f" ({outcome.known_fault})" if outcome.known_fault else ""
        click.echo(f"    {outcome.state}{fault}: {outcome.case}, {outcome.dtype}: {outcome.message}{smaller}")
        if like_it:
            more = "1 more case fails" if len(like_it) == 1 else f"{len(like_it)} more cases fail"
            click.echo(f"        {more} in this way")
    shown = sum(map(len, groups))
    if shown < len(listed):
        click.echo(f"    and {len(listed) - shown} more like these (--verbose shows them)")


def _show_plan(planned: list[Any], suite: Any, no_train: bool, no_time: bool) -> None:
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
    click.echo(f"{len(planned)} combination{'s' * (len(planned) != 1)}; each: {', '.join(kinds)}", err=True)
    click.echo(before_anything(suite, planned, time=time, train=train), err=True)


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
