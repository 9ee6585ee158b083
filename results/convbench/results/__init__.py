"""What came out of a run: where it is kept, how it is read, compared and shown.

Everything is loaded at first use, so that importing this package stays cheap; pandas comes in only where a
table of many rows is read.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convbench.results.comparison.compare import Comparison, compare
    from convbench.results.schema import Combination, Epoch, Row, Sample
    from convbench.results.storage.reader import read_results
    from convbench.results.storage.store import RunStore
    from convbench.results.tables.comparison_table import comparison_table, table_markdown

_LAZY = {
    "Combination": "schema",
    "Comparison": "comparison.compare",
    "Epoch": "schema",
    "Row": "schema",
    "RunStore": "storage.store",
    "Sample": "schema",
    "compare": "comparison.compare",
    "comparison_table": "tables.comparison_table",
    "read_results": "storage.reader",
    "table_markdown": "tables.comparison_table",
}

__all__ = [
    "Combination",
    "Comparison",
    "Epoch",
    "Row",
    "RunStore",
    "Sample",
    "compare",
    "comparison_table",
    "read_results",
    "table_markdown",
]

PLUGINS = (  # the modules with hooks, for the entry point
    "convbench.results.cli.compare",
    "convbench.results.cli.report",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
