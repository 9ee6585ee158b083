"""What is said of a column: name, type, unit, meaning, heading and number format; `schema` has the columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from convbench.results.wording import EMPTY, number


@dataclass(frozen=True)
class Column:
    """A column: what it is called, what it holds (`str`, `int` or `float`), what it means, how it is shown."""

    name: str
    type: type
    required: bool
    later: bool  # added after the documented columns; files without it can be read
    unit: str
    description: str
    default: Any  # where a cell is empty, or a file has no such column
    heading: str  # for people, with the unit
    format: Callable[[float], str]

    def text(self, value: Any) -> str:
        """A value for people to read; `EMPTY` where there is none."""
        if value is None or value == "" or value != value:
            return EMPTY
        return str(value) if self.type is str else self.format(value)


def about(
    description: str,
    unit: str = "",
    *,
    later: bool = False,
    heading: str = "",
    format: Callable[[float], str] | None = None,
) -> Mapping[str, Any]:
    """Document a field: its meaning and unit, and how tables name and format it."""
    return {"description": description, "unit": unit, "later": later, "heading": heading, "format": format}


def optional(description: str, unit: str = "", **more: Any) -> Any:
    """A documented field that may be empty."""
    return field(default=None, metadata=about(description, unit, **more))


later = partial(optional, later=True)


def whole(value: float) -> str:
    """A count."""
    return f"{value:,.0f}"


def factor(value: float) -> str:
    """How many times as fast."""
    return f"{number(value)}×"


def rounded(spec: str) -> Callable[[float], str]:
    """A number by Python's format specification."""
    return lambda value: format(value, spec)


def significant(value: float) -> str:
    """Three significant digits, and all of an integer part."""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


accuracy = rounded(".3f")
