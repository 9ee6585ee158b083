"""Tables and notes on a terminal: columns give way where it is narrow, and no word is broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2  # blanks between two columns
PIPED = 1000  # columns of a pipe or a file: every row is one line
EMPTY = "–"


@dataclass(frozen=True)
class Column:
    """A column of texts, and how it gives way on a narrow terminal.

    A column with `wraps` breaks its cells between words, down to that width. Where that is not enough, the column
    with the highest number in `shortens` or `drops` gives way first: it shows its `short` cells, or it is left
    out. Zero: never.
    """

    title: str
    cells: Sequence[str]
    right: bool = False
    wraps: int = 0
    short: Sequence[str] = ()
    shortens: int = 0
    drops: int = 0

    @property
    def natural(self) -> int:
        """The width that needs no wrapping."""
        return max(map(_width, (self.title, *self.cells)))

    @property
    def least(self) -> int:
        """The width below which a word breaks; only titles and cells that wrap are broken between words."""
        words = self.title.split()
        for cell in self.cells:
            words += cell.split() if self.wraps else [cell]
        return max(min(self.wraps, self.natural), *map(_width, words), 0)


def console(stderr: bool = False) -> Console:
    """Where to print: as wide as the terminal; without colour and bold where NO_COLOR is set."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() or os.environ.get("COLUMNS") else PIPED,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        highlight=False,
        emoji=False,
    )


def fitted(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that `width` has room for; still too many where even those that stay do not fit."""
    shown = list(columns)
    for rank in sorted(
        {rank for each in columns for rank in (each.shortens, each.drops)} - {0}, reverse=True
    ):
        if _needs(shown) <= width:
            break
        shown = [replace(each, cells=each.short) if each.shortens == rank else each for each in shown]
        shown = [each for each in shown if each.drops != rank]
    return shown


def print_table(
    out: Console, columns: Sequence[Column], *, styles: Sequence[str | None] = (), indent: str = ""
) -> list[str]:
    """Print a table; where it is too narrow for one, each row as a block of lines. Returns what was left out."""
    from rich.box import SIMPLE_HEAD
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    room = out.width - len(indent)
    shown = fitted(columns, room)
    as_blocks = _needs(shown) > room
    if as_blocks:
        shown = list(columns)
    rows = list(zip(*(column.cells for column in shown), strict=True))
    row_styles = [*styles, *[None] * (len(rows) - len(styles))]
    if as_blocks:
        for row, style in zip(rows, row_styles, strict=True):
            first, *others = row
            out.print(indent + first, style=style, soft_wrap=True)
            for column, cell in zip(shown[1:], others, strict=True):
                if cell not in ("", EMPTY):
                    print_text(out, f"{column.title}: {cell}", indent=f"{indent}  ", style=style)
    else:
        table = Table(
            box=None if out.options.ascii_only else SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            padding=(0, 1, 0, 0),
        )
        for column, width in zip(shown, _widths(shown, room), strict=True):
            table.add_column(Text(column.title), justify="right" if column.right else "left", width=width)
        for row, style in zip(rows, row_styles, strict=True):
            table.add_row(*map(Text, row), style=style)
        out.print(Padding(table, (0, 0, 0, len(indent)), expand=False) if indent else table)
    kept = {column.title for column in shown}
    return [column.title for column in columns if column.title not in kept]


def print_text(out: Console, text: str, *, indent: str = "", style: str | None = None) -> None:
    """Print a sentence, broken between words."""
    for line in wrapped(text, out.width, indent, f"{indent}  "):
        out.print(line, style=style, soft_wrap=True)


def wrapped(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """A text in lines of at most that width, broken between words; a longer word stays whole.

    The first line begins with `first`, the others with `others`.
    """
    from textwrap import wrap

    return wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table_text(columns: Sequence[Column], width: int = PIPED) -> str:
    """A table as text."""
    from rich.console import Console

    text = StringIO()
    print_table(Console(file=text, width=width, color_system=None), columns)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


@contextmanager
def working(text: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show on a terminal what is being done, and erase it when that is over."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield
        return
    stream.write(f"{text} ...")
    stream.flush()
    try:
        yield
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _needs(columns: Sequence[Column]) -> int:
    return sum(column.least for column in columns) + GAP * (len(columns) - 1)


def _widths(columns: Sequence[Column], room: int) -> list[int]:
    """The width of each column: its natural one, or less where the widest have to wrap."""
    widths = [column.natural for column in columns]
    least = [column.least for column in columns]
    while sum(widths) + GAP * (len(widths) - 1) > room:
        widest = max(
            (at for at, width in enumerate(widths) if width > least[at]), key=widths.__getitem__, default=None
        )
        if widest is None:
            break
        widths[widest] -= 1
    return widths
