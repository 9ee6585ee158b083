"""Bring the generated parts of README.md up to date: tables of reference runs, and the help of commands.

    python scripts/refresh_readme.py [--check]

A part stands between `<!-- table: PATH -->` and `<!-- end of table -->`, or `<!-- help: COMMAND -->` and
`<!-- end of help -->`. With --check nothing is written, and it exits with 1 where a part is stale.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from convbench.registry import discover
from convbench.registry.cli import build

README = Path(__file__).resolve().parent.parent / "README.md"
PART = re.compile(
    r"(?P<begin><!-- (?P<kind>table|help): (?P<what>[^>]+?) -->\n)(?P<body>.*?)(?P<end><!-- end of (?P=kind) -->)",
    re.DOTALL,
)


def refreshed(text: str) -> str:
    """The text with every generated part made anew."""
    return PART.sub(lambda part: part["begin"] + body(part["kind"], part["what"]) + part["end"], text)


def body(kind: str, what: str) -> str:
    """What stands between the marks."""
    return f"\n{table(what) if kind == 'table' else help_text(what)}\n\n"


def table(path: str) -> str:
    """A run's table.md without its title."""
    file = README.parent / path
    if not file.exists():
        return "*There is no reference run yet.*"
    return re.sub(r"\A# .*\n+", "", file.read_text(encoding="utf-8")).strip()


def help_text(command: str) -> str:
    """What `COMMAND --help` prints on 80 columns, with our own plugins alone."""
    group = build(discover(installed=()))
    name, *words = command.split()
    context = click.Context(group, info_name=name, terminal_width=80, **group.context_settings)
    found: click.Command = group
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
        context = click.Context(found, info_name=word, parent=context, terminal_width=80)
    return f"```console\n$ {command} --help\n{found.get_help(context)}\n```"


def main() -> None:
    old = README.read_text(encoding="utf-8")
    new = refreshed(old)
    if "--check" not in sys.argv[1:]:
        README.write_text(new, encoding="utf-8")
    # click's versions wrap lines differently, which makes no part stale
    elif new.split() != old.split():
        sys.exit("README.md is stale: run `make readme`")


if __name__ == "__main__":
    main()
