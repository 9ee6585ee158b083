"""The command `convbench compare`."""

from __future__ import annotations

from pathlib import Path

import click

from convbench.registry.errors import UsageError
from convbench.registry.hookspecs import hookimpl
from convbench.results.cli.report import warnings_to_stderr


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add `convbench compare`."""
    group.add_command(compare)


class Percent(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A percentage such as `5%`, as a share."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not text.endswith("%") or not 0 <= number < float("inf"):
            self.fail(f"{text!r} is not a percentage such as 5%", param, ctx)
        return number / 100


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.argument("more", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "markdown", "json"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a report of it to this file."
)
@click.option("--force", is_flag=True, help="Compare unlike machines, torch builds, data sets and recipes.")
@click.option(
    "--min-effect",
    type=Percent(),
    default="3%",
    show_default=True,
    help="Smaller differences of time are never called faster or slower.",
)
@click.option(
    "--fail-if-slower",
    type=Percent(),
    help="Exit with 1 if a step became slower by more than this, could not be measured any more, or is torch's "
    "where it was the backend's; with 3 if a slow-down is neither shown nor ruled out.",
)
@click.option(
    "--allow-unclear",
    is_flag=True,
    help="Let --fail-if-slower pass pairs in which noise hides as much, unless it does in all.",
)
def compare(
    base: Path,
    new: Path,
    more: tuple[Path, ...],
    style: str,
    html: Path | None,
    force: bool,
    min_effect: float,
    fail_if_slower: float | None,
    allow_unclear: bool,
) -> None:
    """Compare results with those of BASE.

    Each is a results.csv, a run directory, a JSON file of pytest-benchmark, or a directory of such files, one
    per process. With more than two, the history of each combination is shown, and where it changed. Exits with
    3 if nothing could be compared.
    """
    from convbench.registry.cli.terminal import console, working
    from convbench.results.comparison.compare import compare as compare_results
    from convbench.results.comparison.formats import FORMATS, as_table
    from convbench.results.comparison.gate import FINEST

    if allow_unclear and fail_if_slower is None:
        raise UsageError("--allow-unclear is about --fail-if-slower, which is not given")
    if not 0 < min_effect < 1:
        raise UsageError(f"--min-effect is a percentage between 0% and 100%, not {100 * min_effect:g}%")
    if fail_if_slower is not None:
        min_effect = min(min_effect, max(fail_if_slower, FINEST))  # a gate of 1 % is not to overlook 2 %
    with warnings_to_stderr(), working("reading the results"):
        comparison = compare_results(base, new, *more, force=force, min_effect=min_effect)
    if html is not None:
        from convbench.results.report.write import write_comparison

        click.echo(f"report: {write_comparison(comparison, html)}", err=True)
    try:
        text = as_table(comparison, console().width) if style == "table" else FORMATS[style](comparison)
        click.echo(text, nl=False)
    finally:  # the gate decides also when the reader of a pipe has had enough
        if fail_if_slower is not None:
            click.echo(comparison.gate(fail_if_slower, allow_unclear=allow_unclear), err=True)
