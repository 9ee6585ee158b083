"""Write docs/found.md: what convbench has found in other people's code, from `known_faults.toml`.

    python scripts/make_found.py [--check]

With --check nothing is written, and it exits with 1 where the page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from generated import ROOT, write_or_check

from convbench.registry.known_faults import KnownFault, known_faults

HEAD = """\
# Faults in other people's code

<!-- generated: python scripts/make_found.py, from registry/convbench/registry/known_faults.toml -->

Verification compares torch's own kernels with the float64 reference, as it does with every backend, on random
cases from the whole space of calls. This page lists the faults that it has found, each with a small example. It
also lists faults that others have found and that affect the ops of convbench.

`convbench doctor` names the faults that affect your machine. If a fault explains a failing case,
`convbench verify` reports the case under its name, and counts it separately.
[correctness.md](correctness.md#known-faults) says when a fault explains a failure, and how
`auto` and the fallback to torch avoid such calls.
"""


def page(faults: Iterable[KnownFault]) -> str:
    """The whole page."""
    faults = tuple(faults)
    parts = [HEAD]
    for heading, found in (("Found by convbench", "convbench"), ("Found by others", "elsewhere")):
        entries = [fault for fault in faults if fault.found == found]
        if entries:
            parts += [f"## {heading}\n", *("\n".join(_entry(fault)) for fault in entries)]
    return "\n".join(parts)


def _entry(fault: KnownFault) -> Iterator[str]:
    summary = fault.summary[:1].upper() + fault.summary[1:]
    needs = f", on processors with `{fault.instruction_set}`" if fault.instruction_set else ""
    yield f"### {fault.library} {fault.versions}: {fault.reference}\n"
    yield f"{summary}.\n"
    yield f"```python\n{fault.example.strip()}\n```\n"
    yield f"- **Affected**: {_listed(fault.ops)} in {_listed(fault.dtypes)} on {_listed(fault.devices)}{needs},"
    yield f"  where `{' '.join(fault.when.split())}`."
    yield f"- **Since**: {' '.join(fault.since.split())}"
    yield f"- **To avoid it**: {fault.avoid}. convbench computes such calls in {fault.compute_in}."
    yield f"- **Threads**: {', '.join(f'[{_short(thread)}]({thread})' for thread in fault.threads)}."
    yield f"- **Reported as**: `{fault}`.\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _short(thread: str) -> str:
    """`https://github.com/pytorch/pytorch/issues/1` as `pytorch 1`."""
    parts = thread.rstrip("/").split("/")
    return f"{parts[-3]} {parts[-1]}"


if __name__ == "__main__":
    write_or_check({ROOT / "docs" / "found.md": page(known_faults())}, check="--check" in sys.argv)
