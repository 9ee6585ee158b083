"""Bring the tables of docs/cheats.md up to date with the museum of cheats.

    python scripts/make_cheats.py [--check]

With --check nothing is written, and it exits with 1 where the tables are stale. Plugins are read, not imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cheats.md"
MUSEUM = ROOT / "tests" / "museum"

# by the name that a plugin gives as CAUGHT_BY: the words for it, and what is done
DEFENCES = {
    "reference": (
        "float64 reference",
        "Output and gradients are compared with torch's in float64, on random numbers, with a bound "
        "that scales with them; new memory is filled with NaN in one of the runs, so that what is not "
        "written shows.",
    ),
    "inputs": (
        "inputs compared",
        "What was handed over, to the op or to its backward pass, is compared with a copy, and its memory "
        "with the output's.",
    ),
    "again": (
        "run again",
        "The same numbers are computed twice, and must be the same to the bit.",
    ),
    "lasting": (
        "new numbers in old memory",
        "The op is called twice on the same tensors, filled with other numbers in between. The second "
        "answer must be to the second numbers, the first must still be there, and a wrong one is "
        "watched for being written late.",
    ),
    "later": (
        "verification repeated",
        "After a timing, and after a training, everything is verified once more on new numbers, in "
        "the same process; after a training for the smaller batches as well that ended its epochs and "
        "evaluations.",
    ),
    "step": (
        "a step under audit",
        "After a timing, and after a training, a step is taken that differs from the others in "
        "nothing a backend is given: the same layers, parameters, images and modes. Every answer in "
        "it is held against the reference, and gradients that flow from it. After a training an "
        "evaluation is audited too.",
    ),
    "service": (
        "service compared",
        "What is refused in verification must be refused in a step, and the other way round; and the "
        "share of calls that was served in the timed steps must be that of the step under audit.",
    ),
    "originals": (
        "originals",
        "Before a worker loads plugins, it notes every function of the clock, of Python's built-ins, "
        "of torch and of convbench itself. Before and after each conclusion they must be the same "
        "objects. The references must reproduce sums of whole numbers exactly, in case a kernel "
        "beneath them was replaced. The clock that times was taken before, too.",
    ),
    "settings": (
        "settings",
        "Threads, default dtype and device, denormals, gradient mode, determinism, precision, modes "
        "that intercept calls, and the seed of random numbers must be after a call and its backward "
        "pass what they were before.",
    ),
    "events": (
        "marked results",
        "What a worker sends carries a token that was drawn for it; whatever else comes through the "
        "pipe is dropped and noted. A process that ends without a result of its own has crashed.",
    ),
}
PROCESSES = {"verify": "verification", "time": "timing", "train": "training"}


@dataclass(frozen=True)
class Cheat:
    """What a plugin of the museum says about itself."""

    name: str
    what: str
    caught_by: str
    says: str
    at: str


def cheats() -> Iterator[Cheat]:
    """Every plugin of the museum but the honest one, by name."""
    for path in sorted(MUSEUM.glob("*.py")):
        if path.stem in ("__init__", "honest"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        values = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        what = ast.get_docstring(tree) or ""
        yield Cheat(path.stem, what, values["CAUGHT_BY"], values["SAYS"], values.get("AT", "verify"))


def refreshed(text: str) -> str:
    """The page with both tables made anew."""
    defences = ["| defence | what is done |", "| --- | --- |"]
    defences += [f"| {name} | {what} |" for name, what in DEFENCES.values()]
    table = ["| cheat | caught by | at the latest in | the row says |", "| --- | --- | --- | --- |"]
    for cheat in cheats():
        link = f"[{cheat.name.replace('_', '-')}](../tests/museum/{cheat.name}.py)"
        cells = (
            f"{link}: {cheat.what[:1].lower()}{cheat.what[1:].removesuffix('.')}",
            DEFENCES[cheat.caught_by][0],
            PROCESSES[cheat.at],
            f"... {cheat.says} ...",
        )
        table.append(f"| {' | '.join(cells)} |")
    for name, lines in (("defences", defences), ("cheats", table)):
        body = "\n".join(["", *lines, ""])
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = mark.sub(lambda part, body=body: f"{part[1]}{body}\n{part[2]}", text)
    return text


def main() -> None:
    old = PAGE.read_text(encoding="utf-8")
    new = refreshed(old)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("docs/cheats.md is stale: run `python scripts/make_cheats.py`")


if __name__ == "__main__":
    main()
