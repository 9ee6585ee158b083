"""The command `convbench report`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from convbench.registry.hookspecs import hookimpl


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add `convbench report`."""
    group.add_command(report)


@contextmanager
def warnings_to_stderr() -> Iterator[None]:
    """Say what the library warns of, in a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        click.echo(f"warning: {warning.message}", err=True)


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--plots", is_flag=True, help="Also write the charts as PNG and SVG files.")
@click.option(
    "--rank",
    type=click.Choice(["served", "all"]),
    default="served",
    show_default=True,
    help="Which backends are ranked: those that left no convolution to torch, or all.",
)
@click.option("--open", "open_page", is_flag=True, help="Open report.html in a browser.")
def report(run_dir: Path, plots: bool, rank: Literal["served", "all"], open_page: bool) -> None:
    """Write table.md and report.html of a run again, from its results."""
    from convbench.registry.cli.terminal import working
    from convbench.results.report.write import open_in_browser, write_all

    with warnings_to_stderr(), working(f"reading {run_dir}"):
        paths = [*write_all(run_dir, rank=rank)]
    if plots:
        from convbench.results.charts.run_charts import write_plots

        paths += write_plots(run_dir, rank=rank)
    for path in paths:
        click.echo(path)
    if open_page:
        open_in_browser(run_dir / "report.html")
