"""Results that show themselves: a short text, a table in a notebook, a pandas DataFrame on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 60  # of a table in a notebook; `.table()` has them all


class Displayed:
    """Has `.table()`, and shows its `repr` with that table in a notebook."""

    def table(self) -> pd.DataFrame:
        """A tidy DataFrame."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return html(repr(self), self.table())


def html(title: str, *frames: pd.DataFrame) -> str:
    """A line of text and the tables below it; texts from plugins are escaped."""
    tables = [frame.to_html(index=False, max_rows=MOST_ROWS, na_rep="–", border=0) for frame in frames]
    return "\n".join([f"<p>{escape(title)}</p>", *tables])


def plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a record that are values and not functions; of anything else its text."""
    if not is_dataclass(record):
        return {"value": str(record)}
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: plain(value) for name, value in values.items() if not callable(value)}


def plain(value: Any) -> Any:
    """A value for a cell: several as one text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
