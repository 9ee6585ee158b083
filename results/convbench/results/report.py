"""Writes what a person reads of a run, from what the run wrote."""

from __future__ import annotations

from pathlib import Path

from convbench.registry.errors import UsageError
from convbench.results.tables import table_markdown


def write_table(run_dir: Path | str) -> Path:
    """Write table.md into a run directory, and return its path.

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise UsageError(f"{path} is not a run directory")
    target = path / "table.md"
    text = table_markdown(path)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    return target
