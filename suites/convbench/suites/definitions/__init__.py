"""The suites convbench ships: every TOML file beside this module."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convbench.registry import hookimpl


@hookimpl
def convbench_suites() -> Iterable[Path]:
    return sorted(Path(__file__).parent.glob("*.toml"))
