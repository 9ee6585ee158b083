"""What all rows of a run share, for the heading of its page."""

from __future__ import annotations

import re

from convbench.results.analysis.contents import Contents
from convbench.results.tables.comparison_table import dataset, some


def facts(contents: Contents) -> list[tuple[str, str]]:
    """What all rows share, for the heading of the report."""
    rows = contents.table.rows
    found = [
        ("suite", some(row.suite for row in rows)),
        ("data set", some(dataset(row) for row in rows)),
        ("recipe", some(row.recipe for row in rows)),
        ("device", some(row.device_name for row in rows)),
        ("torch", some(row.torch_version for row in rows)),
        ("threads", some(None if row.threads is None else str(row.threads) for row in rows)),
        ("seeds", some(str(row.seed) for row in rows)),
        ("convbench", some(row.convbench_version for row in rows)),
        ("started", [moment(each) for each in sorted(row.started_at for row in rows if row.started_at)[:1]]),
    ]
    return [(name, "; ".join(values[:8]) + " …" * (len(values) > 8)) for name, values in found if values]


def moment(started_at: str) -> str:
    """A time as one reads it, to the minute."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:[\d.]+)?(\+00:00|Z)$", r"\1 \2 UTC", started_at)
