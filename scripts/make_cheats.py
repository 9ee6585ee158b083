"""Bring the tables of docs/cheats.md up to date with the museum of cheats.

    python scripts/make_cheats.py [--check]

With --check nothing is written, and it exits with 1 where the tables are stale. Plugins are read, not imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from generated import ROOT, between_marks, table, write_or_check

PAGE = ROOT / "docs" / "cheats.md"
MUSEUM = ROOT / "tests" / "museum"

# by the name that a plugin gives as CAUGHT_BY: the words for it, and what is done
DEFENCES = {
    "reference": (
        "float64 reference",
        "Output and gradients are compared with torch's in float64, on random numbers, with a bound "
        "that scales with them. In one of the runs new memory is filled with NaN, so that elements that "
        "are never written are found.",
    ),
    "inputs": (
        "inputs compared",
        "The tensors given to the op and to its backward pass are compared with copies afterwards, and "
        "the output must not share their memory.",
    ),
    "again": (
        "run again",
        "The op is called twice on the same numbers. The answers must be the same to the bit.",
    ),
    "lasting": (
        "new numbers in old memory",
        "The op is called twice on the same tensors, which are filled with other numbers in between, or a "
        "few of whose numbers are replaced without a change of the version that torch keeps. The second answer "
        "must fit the second numbers, and the first must be unchanged. If an answer is wrong, it is checked "
        "again a little later, in case it was still being written.",
    ),
    "later": (
        "verification repeated",
        "After a timing or a training, everything is verified once more on new numbers in the same "
        "process; after a training also for the smaller last batches of its epochs and evaluations.",
    ),
    "midst": (
        "steps audited in the midst",
        "Between two timed steps, at two moments drawn from a secret of the run, a step is taken while "
        "the clock stands. Layers, images, callers and their depth are those of the timed steps. Every answer "
        "is compared with the reference, and every gradient for the one that really comes in and for a "
        "random one. One more step follows, which is not timed either, so that the caches are those of a step. "
        "Where more steps follow until their median is precise, one of as many again is audited.",
    ),
    "replay": (
        "steps taken again by torch",
        "The first three steps of a training, one step of each epoch at random, and the steps that are audited "
        "in a timing are taken again by torch, from the same parameters, images and random numbers. The "
        "loss, and the gradient that each parameter has followed, must be the same but for rounding.",
    ),
    "unannounced": (
        "steps looked at afterwards",
        "Before a step is audited, the one before it, which was taken like all others, is taken again by torch as "
        "well: its update is taken back, and the gradients that it left must be torch's but for rounding. Nothing "
        "that comes with an audit, such as a pause, could have announced it.",
    ),
    "evaluation": (
        "evaluations taken again by torch",
        "The last evaluation of a training, and others at random, are taken again by torch, for a second at most. "
        "Loss and accuracy must be the same but for rounding. No evaluation may change a parameter.",
    ),
    "step": (
        "a step under audit",
        "After a timing or a training, one more step is taken, on images drawn at random from the whole data. "
        "Every answer and every gradient in it is compared with the reference. After a training, an evaluation "
        "is audited too.",
    ),
    "service": (
        "service compared",
        "A call that is refused in verification must be refused in a step, and vice versa. The share of "
        "calls served in the timed steps must be the same as in the step under audit, and their FLOPs those of "
        "all images.",
    ),
    "originals": (
        "originals",
        "Before a worker loads plugins, it takes a fingerprint of every function, class, constant and table of "
        "convbench, of what convbench uses of Python (clock, built-ins, json, os, statistics and more), and of "
        "torch's functions, layers, optimizers and gradients: code, defaults and closures of functions as well. "
        "Before and after each verdict, and once more before the result is sent, everything must be as it was. "
        "The last comparison is made by a copy of the code that has no name, and what was changed is put back. "
        "The references must compute sums of whole numbers exactly, in case a kernel below them was "
        "replaced. In the end the kernels of the functions that networks are trained with are compared in "
        "torch's dispatcher, too. "
        "The clock used for timing is saved before plugins are loaded, too.",
    ),
    "settings": (
        "settings",
        "A call and its backward pass must not change the number of threads, default dtype and device, "
        "denormals, gradient mode, determinism, precision, autocast, modes that intercept calls, global hooks of "
        "modules and optimizers, signals and timers, profilers, the collection of garbage, cores and priority of "
        "the process, the environment of libraries, or the seed of random numbers. Nor must it change the cores, "
        "priority and limits of the parent process, which later workers inherit.",
    ),
    "data": (
        "the data kept",
        "In the end images and labels must be those of the file that all workers map, and the objects that "
        "batches come from must be the same. Once it is written, the system lets nobody write into that file.",
    ),
    "model": (
        "the model kept",
        "A call must leave its tensors as they were in all but their numbers: requires_grad, hooks, gradient, "
        "memory. Of the model that is measured, the parameters, hooks and options of layers must be the "
        "same in the end as before its first call. So must the optimizer with its options, and whatever else "
        "the measurement is made of.",
    ),
    "clocks": (
        "two clocks",
        "A worker says when its clock is started and stopped, and its parent's own clock goes with it. Both must "
        "agree. What the parent sees itself is what a row has. More than twice the arithmetic that the device "
        "does in matrix products (eight times for algorithms that save some) is not possible. Nor may the threads "
        "of a worker keep more CPUs busy than it was given, or processes compute that it has started. The median "
        "step by its marks must be that by a clock around the steps.",
    ),
    "events": (
        "marked results",
        "Each worker gets a random token, and every message from it carries the token. Other messages in "
        "the pipe are dropped and noted. A process that ends without a result of its own has crashed.",
    ),
    "files": (
        "results kept",
        "Whenever a worker ends, the run compares the files in its directory with what it has written there, and "
        "puts them back.",
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
    defences = table(["defence", "what is done"], DEFENCES.values())
    rows = []
    for cheat in cheats():
        link = f"[{cheat.name.replace('_', '-')}](../tests/museum/{cheat.name}.py)"
        what = f"{link}: {cheat.what[:1].lower()}{cheat.what[1:].removesuffix('.')}"
        rows.append([what, DEFENCES[cheat.caught_by][0], PROCESSES[cheat.at], f"... {cheat.says} ..."])
    text = between_marks(text, "defences", lambda _: defences)
    headings = ["cheat", "caught by", "at the latest in", "the row says"]
    count = f"{len(rows)} cheats, {len(rows)} caught: a test fails where one is not."
    return between_marks(text, "cheats", lambda _: f"{count}\n\n{table(headings, rows)}")


if __name__ == "__main__":
    write_or_check({PAGE: refreshed(PAGE.read_text(encoding="utf-8"))}, check="--check" in sys.argv)
