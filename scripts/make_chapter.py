"""Run the code in docs/chapter.md and put its outputs and pictures in their place.

    python scripts/make_chapter.py [--check] [DOCUMENT]

`--check` writes nothing, names what is stale, and exits with 1 where something is. The document is Markdown:

- A `python` block is executed; it outputs what it prints and, as a notebook does, its last expression.
- A `console` block of `$ convbench ...` lines runs these commands; it outputs their standard output.
- The `text` block after one of them is its output, to be met exactly. `text close` allows each number to differ
  by 5 % or 0.05, as after a training on another processor; `text machine` allows other numbers and another
  order of the lines, as in a table of speeds.
- `![...](pictures/NAME.png)` is what `NAME` in `chapter_pictures.py` draws of the section's variables that its
  parameters name.

Every `##` section starts anew: an empty namespace, seed 0, one thread. What still holds is left as it is.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "chapter.md"

FENCE = re.compile(r"^```(?P<kind>python|console)\n(?P<code>.*?)^```\n", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\n```text(?P<mode>[a-z ]*)\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[[^\]]*\]\((?P<path>pictures/(?P<name>\w+)\.png)\)", re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
FILLING = re.compile(r"[\s━─-]+")  # as wide as the numbers in a table happen to be
MODES = ("", "close", "machine")


class GuideError(Exception):
    """A block that cannot be run or understood; the message names its line."""


@dataclass
class Outcome:
    """The document as it should be, and what of it is stale."""

    text: str = ""
    stale: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("document", type=Path, nargs="?", default=GUIDE)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    document = options.document.resolve()
    try:
        outcome = make(document, write=not options.check)
    except GuideError as error:
        sys.exit(str(error))
    for line in (*outcome.notes, *outcome.stale):
        print(line, file=sys.stderr)
    if options.check and outcome.stale:
        sys.exit(f"{document.name} is stale; run: python scripts/make_chapter.py")
    if not options.check:
        document.write_text(outcome.text, encoding="utf-8")


def make(document: Path, write: bool) -> Outcome:
    """Run the whole document; pictures are written where `write` says so, the document itself never is."""
    source = document.read_text(encoding="utf-8")
    outcome = Outcome()
    with quiet_process():
        line = 1
        for section in re.split(r"^(?=## )", source, flags=re.MULTILINE):
            _run_section(section, document, line, outcome, write)
            line += section.count("\n")
    return outcome


def _run_section(section: str, document: Path, line: int, outcome: Outcome, write: bool) -> None:
    """Run the blocks and pictures of one section, in the order in which they stand there."""
    import torch

    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    position = 0
    while found := _next(section, position):
        where = f"{document.name}:{line + section.count(chr(10), 0, found.start())}"
        outcome.text += section[position : found.end()]
        position = found.end()
        if found.re is PICTURE:
            _draw(document.parent / found["path"], found["name"], namespace, where, outcome, write)
            continue
        output = _run_block(found["kind"], found["code"], namespace, where)
        shown = OUTPUT.match(section, position)
        mode = shown["mode"].strip() if shown else ""
        if mode not in MODES:
            raise GuideError(f"{where}: unknown output mode {mode!r}; there are close and machine")
        before = shown["text"] if shown else ""
        if not agrees(mode, before, output):
            outcome.stale.append(_difference(where, before, output))
            before = output
        if before:
            outcome.text += f"\n```text{f' {mode}' if mode else ''}\n{before}```\n"
        position = shown.end() if shown else position
    outcome.text += section[position:]


def _next(section: str, position: int) -> re.Match[str] | None:
    """The next block or picture."""
    found = [match for pattern in (FENCE, PICTURE) if (match := pattern.search(section, position))]
    return min(found, key=lambda match: match.start(), default=None)


def _run_block(kind: str, code: str, namespace: dict[str, Any], where: str) -> str:
    """What a block outputs, with one newline at its end unless it outputs nothing."""
    captured = io.StringIO()
    notes = io.StringIO()
    try:
        with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(notes):
            (_run_python if kind == "python" else _run_commands)(code, namespace)
    except Exception as error:  # the author's block may raise anything
        raise GuideError(f"{where}: {type(error).__name__}: {error}\n{notes.getvalue()}") from error
    lines = [line.rstrip() for line in captured.getvalue().rstrip().splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _run_python(code: str, namespace: dict[str, Any]) -> None:
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<guide>", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<guide>", "eval"), namespace)
        if value is not None:
            print(value)


def _run_commands(code: str, namespace: dict[str, Any]) -> None:
    from convbench.registry.cli.main import main as convbench

    for command in code.splitlines():
        if not command.startswith("$ convbench "):
            raise ValueError(f"a console block has lines of '$ convbench ...', not {command!r}")
        try:
            convbench(shlex.split(command)[2:])
        except SystemExit as exit_:
            if exit_.code:
                raise ValueError(f"{command!r} exits with {exit_.code}") from None


def agrees(mode: str, before: str, after: str) -> bool:
    """Whether an output still holds: exactly, closely, or but for its numbers."""
    if not mode:
        return before == after
    shapes = [
        [FILLING.sub(" ", NUMBER.sub("0", line)) for line in text.splitlines()] for text in (before, after)
    ]
    if mode == "machine":
        return sorted(shapes[0]) == sorted(shapes[1])
    numbers = [
        [float(number.replace(",", "")) for number in NUMBER.findall(text)] for text in (before, after)
    ]
    return shapes[0] == shapes[1] and all(
        abs(a - b) <= max(0.05, 0.05 * abs(a)) for a, b in zip(*numbers, strict=True)
    )


def _difference(where: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "in the guide", "now", lineterm="", n=0
    )
    return f"{where}: the output of this block is stale\n" + "\n".join(f"    {line}" for line in lines)


def _draw(
    path: Path, name: str, namespace: dict[str, Any], where: str, outcome: Outcome, write: bool
) -> None:
    import chapter_pictures

    try:
        drawn = chapter_pictures.render(name, namespace)
    except LookupError as error:
        raise GuideError(f"{where}: {error.args[0]}") from error
    reason = chapter_pictures.staleness(path, drawn)
    if reason:
        outcome.stale.append(f"{where}: {path.name} is stale: {reason}")
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(drawn)
    elif not chapter_pictures.comparable(path, drawn):
        outcome.notes.append(f"the pixels of {path.name} are not compared: another vl-convert drew it")


@contextlib.contextmanager
def quiet_process() -> Iterator[None]:
    """One thread, no progress bars, and a directory of its own for what commands leave behind."""
    import torch

    threads, here = torch.get_num_threads(), Path.cwd()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            yield
        finally:
            os.chdir(here)
            torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
