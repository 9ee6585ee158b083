"""Keeps names and error texts, which come from plugins, from becoming markup or commands of a terminal."""

from __future__ import annotations

import re
from itertools import groupby

from convbench.results.wording import UNSEEN

CONTROL = re.compile(rf"[{UNSEEN}\ud800-\udfff]+")
INVISIBLE = re.compile(rf"(?![\t\n])[{UNSEEN}]")
# A terminal's sequence as a whole: without its first character the rest would be gibberish.
SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)
MARKUP = re.compile(
    r"[`*<|~]"
    r"|\\(?=[!-/:-@\[-`{-~]|$)"  # elsewhere a backslash is one
    r"|\](?=[(\[:])"  # a link
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside of a word it is no mark
    r"|&(?=[#\w]+;)"
    r"|^>|^(?=(?:[#+-]|\d+[.)])\s)"  # a quotation, a heading, a list
)
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def flatten(text: str) -> str:
    """One line of a text of many, without control characters."""
    return CONTROL.sub(" ", SEQUENCE.sub("", text)).strip()


def printable(text: str) -> str:
    """A text of as many lines without control characters, and without marks that turn it around."""
    return INVISIBLE.sub(" ", text)


def escape(text: str) -> str:
    """A text in Markdown that shows as it is: it ends no cell of a table and starts no markup of its own."""
    return MARKUP.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), flatten(text))


def code(text: str) -> str:
    """A text as code in Markdown, with any backticks in it; not for tables, where it could end a cell."""
    flat = flatten(text)
    longest = max((len(list(run)) for mark, run in groupby(flat) if mark == "`"), default=0)
    pad = " " if flat.startswith("`") or flat.endswith("`") or not flat else ""
    fence = "`" * (longest + 1)
    return f"{fence}{pad}{flat}{pad}{fence}"
