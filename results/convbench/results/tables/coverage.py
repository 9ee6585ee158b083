"""What served what: op by op, the calls and the work that each backend did itself; torch did the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.coverage import names, shares
from convbench.results.schema import STATUSES, Row
from convbench.results.tables.html import HtmlTable, state, table
from convbench.results.wording import EMPTY, share

BEFORE = ("verification", "share of FLOPs")
AFTER = ("claims", "derived backward", "max error", "plugin")


def served_table(contents: Contents) -> HtmlTable | None:
    """A line per network and backend, a column per op, and how right its results were."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in contents.table.rows:
        if row.kind == "verify" or row.served is not None or row.served_calls is not None:
            known = found.setdefault((row.architecture, row.backend, row.device, row.dtype), {})
            for name, text in served_cells(row):
                known.setdefault(name, text)
    ops = sorted({name for cells in found.values() for name in cells if name not in (*BEFORE, *AFTER)})
    headings = [*BEFORE, *ops, *AFTER]
    return table(
        "served",
        "Calls that the backend computed itself, of the calls made; torch computed the rest",
        ["architecture", "backend", "device", "dtype", *headings],
        [[*key, *(cells.get(name, EMPTY) for name in headings)] for key, cells in found.items()],
        filtered={"architecture", "backend", "device", "dtype", "verification"},
        states=[
            state(cells["verification"]) if cells.get("verification") in STATUSES else "ok"
            for cells in found.values()
        ],
        bars={"share of FLOPs"},
    )


def served_cells(row: Row) -> Iterator[tuple[str, str]]:
    """What one row tells, by column."""
    if row.kind == "verify":
        yield "verification", row.status
    if row.served_flops_fraction is not None:
        yield "share of FLOPs", share(row.served_flops_fraction)
    yield from served_ops(row).items()
    if row.claimed:
        yield "claims", ", ".join(names(row.claimed))
    if row.derived_backward:
        yield "derived backward", ", ".join(names(row.derived_backward))
    if row.max_error is not None:
        yield "max error", f"{row.max_error:.1e}"
    if row.plugin:
        yield "plugin", " ".join(filter(None, (row.plugin, row.plugin_version)))


def served_ops(row: Row) -> Mapping[str, str]:
    """The calls served of each op, with the share of its FLOPs where that says more."""
    found = {}
    for each in shares(row):
        part = f" ({share(each.flops)} of FLOPs)" if each.flops is not None and 0 < each.flops < 1 else ""
        found[each.op] = f"{each.served} of {each.calls}{part}"
    return found
