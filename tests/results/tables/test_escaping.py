"""Names and error texts of plugins, where they are shown: they start no markup and command no terminal."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest

from convbench.results import table_markdown
from convbench.results.tables.comparison_table import print_table
from convbench.results.tables.escaping import code, escape, flatten
from result_rows import row, timed

HOSTILE = "a|b\n`c` <img src=x> \x1b[31mred\x1b[0m \x1b]0;title\x07 [link](http://x) *bold* \x9b2J \u202egnp"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\n\ttwo\r\n", "one two"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\a link\x1b]8;;\x1b\\", "a link"),
        ("\x1bcreset", "reset"),
        ("right \u202eot tfel", "right  ot tfel"),
        ("nul\0 del\x7f \udcff", "nul  del"),
    ],
)
def test_a_text_is_one_line_without_commands(text: str, shown: str) -> None:
    assert flatten(text) == shown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("winograd_4x4", "winograd_4x4"),  # no mark, and names are full of them
        ("__init__", r"\_\_init\_\_"),
        ("a|b", r"a\|b"),
        ("<b>", "&lt;b>"),
        ("&lt; & co", "&amp;lt; & co"),
        ("`x` *y* ~z~", r"\`x\` \*y\* \~z\~"),
        ("[x](http://y)", r"[x\](http://y)"),
        ("![x](http://y)", r"![x\](http://y)"),
        (r"\| C:\temp", r"\\\| C:\temp"),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        ("1. item", r"\1. item"),
        ("-1.5", "-1.5"),
        ("> quoted", "&gt; quoted"),
    ],
)
def test_a_text_shows_in_markdown_as_it_is(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a", "`a`"),
        ("a`b", "``a`b``"),
        ("`a", "`` `a ``"),
        ("", "`  `"),
        ("a\nb", "`a b`"),
        ("``", "``` `` ```"),
    ],
)
def test_code_holds_any_backticks(text: str, written: str) -> None:
    assert code(text) == written


class Tags(HTMLParser):
    """The tags of what a Markdown renderer would pass on as HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def test_a_table_keeps_its_shape_whatever_names_and_errors_hold() -> None:
    names = {
        "backend": HOSTILE,
        "architecture": HOSTILE,
        "device": HOSTILE,
        "suite": HOSTILE,
        "recipe": HOSTILE,
    }
    rows = [*timed([1.0], notes=HOSTILE, **names), row(status="error", error=HOSTILE, kind="verify", **names)]
    text = table_markdown(rows)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert len(table) == 3
    assert not set(text) & {"\x1b", "\x9b", "\u202e", "\r"}
    outside_code = re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert len(outside_code) < len(text) - 2 * len(HOSTILE)
    assert Tags(outside_code).found == []
    assert "](http" not in outside_code.replace(r"\](http", "")


def test_a_terminal_gets_no_commands_of_a_plugin() -> None:
    from rich.console import Console

    text = io.StringIO()
    names = {"backend": HOSTILE + "[red]", "architecture": HOSTILE}
    rows = [*timed([1.0], notes=HOSTILE, **names), row(status="error", error=HOSTILE, kind="verify", **names)]
    print_table(Console(file=text, width=400), rows)
    assert not set(text.getvalue()) & {"\x1b", "\x9b", "\u202e", "\r", "\x07"}
    assert "[red]" in text.getvalue()
