"""Writes what a person reads of a run, from what the run wrote: table.md and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convbench.registry.errors import UsageError
from convbench.results.tables import table_markdown

if TYPE_CHECKING:
    from convbench.results.comparing import Comparison


def write_all(run_dir: Path | str) -> tuple[Path, Path]:
    """Write table.md and report.html into a run directory, and return their paths.

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    return write_table(run_dir), write_report(run_dir)


def write_table(run_dir: Path | str) -> Path:
    """Write table.md into a run directory, and return its path.

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    return write_text(directory(run_dir) / "table.md", table_markdown(directory(run_dir)))


def write_report(run_dir: Path | str) -> Path:
    """Write report.html into a run directory, and return its path.

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    from convbench.results.contents import read_contents
    from convbench.results.html_report import report_html

    return write_text(directory(run_dir) / "report.html", report_html(read_contents(directory(run_dir))))


def write_comparison(comparison: Comparison, target: Path) -> Path:
    """Write a comparison as a page, and return its path.

    Raises:
        UsageError: the file cannot be written.
    """
    from convbench.results.html_report import comparison_html

    return write_text(target, comparison_html(comparison))


def directory(run_dir: Path | str) -> Path:
    """A run directory; raises UsageError if it is none."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UsageError(f"{path} is not a run directory")
    return path


def write_text(target: Path, text: str) -> Path:
    """Write a file, and return its path; what is no text in UTF-8 is written in escapes."""
    try:
        target.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    return target
