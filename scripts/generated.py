"""Generated text in documents: what stands between two marks, Markdown tables, and the check of what is stale."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def between_marks(text: str, kind: str, body: Callable[[str], str]) -> str:
    """Put `body(WHAT)` between `<!-- KIND: WHAT -->` (or `<!-- KIND -->`) and `<!-- end of KIND -->`."""
    part = re.compile(rf"(<!-- {kind}(?:: (?P<what>[^>]+?))? -->\n).*?(<!-- end of {kind} -->)", re.DOTALL)
    return part.sub(lambda found: f"{found[1]}\n{body(found['what'] or '')}\n\n{found[3]}", text)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table; `align` has an `l` or `r` for each column, for left or right."""
    rule = ["---:" if side == "r" else "---" for side in align.ljust(len(headings), "l")]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *rows))


def write_or_check(pages: Mapping[Path, str], check: bool, wrapped: Collection[Path] = ()) -> None:
    """Write pages; with `check`, write nothing, and exit with 1 if one of them is stale.

    In pages that are `wrapped`, lines may end elsewhere: click's versions wrap help differently.
    """
    stale = []
    for path, text in pages.items():
        if not check:
            path.write_text(text, encoding="utf-8")
            continue
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old.split() != text.split() or (path not in wrapped and old != text):
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run: python scripts/{Path(sys.argv[0]).name}")
