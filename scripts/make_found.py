"""Write docs/found.md: what convbench has found in other people's code, from `known_faults.toml`.

    python scripts/make_found.py [--check]

With --check nothing is written, and it exits with 1 where the page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from convbench.registry.known_faults import KnownFault, known_faults

PAGE = Path(__file__).resolve().parent.parent / "docs" / "found.md"

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


def main() -> int:
    """Write the page, or tell whether it is stale."""
    text = page(known_faults())
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print(f"stale: run python scripts/make_found.py, which writes {PAGE}", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
