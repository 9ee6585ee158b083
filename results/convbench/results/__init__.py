"""What came out of a run: where it is kept, how it is read, compared and shown.

Everything is loaded at first use, so that importing this package stays cheap; pandas comes in only where a
table of many rows is read.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convbench.results.comparing import Comparison, compare
    from convbench.results.reading import read_results
    from convbench.results.schema import Combination, Epoch, Row, Sample
    from convbench.results.store import RunStore
    from convbench.results.tables import comparison_table, table_markdown

_LAZY = {
    "Combination": "schema",
    "Comparison": "comparing",
    "Epoch": "schema",
    "Row": "schema",
    "RunStore": "store",
    "Sample": "schema",
    "compare": "comparing",
    "comparison_table": "tables",
    "read_results": "reading",
    "table_markdown": "tables",
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


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
