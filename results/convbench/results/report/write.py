"""Writes what a person reads of a run, from what the run wrote: table.md and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convbench.registry.errors import UsageError
from convbench.results.analysis.contents import Contents, read_contents
from convbench.results.analysis.coverage import Rank
from convbench.results.storage.files import write_or_refuse
from convbench.results.tables.comparison_table import markdown

if TYPE_CHECKING:
    from convbench.results.comparison.compare import Comparison


def write_all(run_dir: Path | str, *, rank: Rank = "served") -> tuple[Path, Path]:
    """Write table.md and report.html into a run directory, and return their paths.

    Backends that left convolutions to torch are not ranked, unless `rank` is "all".

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    from convbench.results.report.page import report_html

    table = write_table(run_dir, contents := read_run(run_dir, rank))
    return table, write_or_refuse(Path(run_dir) / "report.html", report_html(contents))


def write_table(run_dir: Path | str, contents: Contents | None = None) -> Path:
    """Write table.md into a run directory, from its contents if they are read already; return its path.

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    contents = contents or read_run(run_dir, "served")
    return write_or_refuse(Path(run_dir) / "table.md", markdown(contents.table, contents.environment))


def read_run(run_dir: Path | str, rank: Rank) -> Contents:
    """The contents of a run directory; raises UsageError if it is none."""
    if not Path(run_dir).is_dir():
        near = Path(run_dir).parent
        hint = f"; {near} is one" if Path(run_dir).is_file() and (near / "results.csv").exists() else ""
        raise UsageError(f"{run_dir} is not a run directory{hint}")
    return read_contents(run_dir, rank=rank)


def write_comparison(comparison: Comparison, target: Path) -> Path:
    """Write a comparison as a page, and return its path.

    Raises:
        UsageError: the file cannot be written.
    """
    from convbench.results.report.page import comparison_html

    return write_or_refuse(target, comparison_html(comparison))


def show_page(page: Path, open_it: bool = False) -> None:
    """Say on standard error where a page is, and open it in a browser where that is asked for."""
    import click

    click.echo(f"report: {page}", err=True)
    if open_it:
        open_in_browser(page)


def open_in_browser(page: Path) -> None:
    """Open a page in a browser; where there is none, say so on standard error."""
    import webbrowser

    import click

    if not webbrowser.open(page.absolute().as_uri()):
        click.echo(f"no browser was found; open {page} in one", err=True)


def check_writable(target: Path) -> None:
    """Refuse a file that cannot be written, and leave what is there as it is; raises UsageError."""
    new = not target.exists()
    try:
        with target.open("a", encoding="utf-8"):
            pass
        if new:
            target.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
