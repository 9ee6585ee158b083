"""What to run and how: suite files, the plan of combinations, the runner and its worker processes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convbench.suites.runner import RunResult, run
    from convbench.suites.suite import Suite
    from convbench.suites.suite_files import load_suite

_LAZY = {"RunResult": "runner", "Suite": "suite", "load_suite": "suite_files", "run": "runner"}

__all__ = ["RunResult", "Suite", "load_suite", "run"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
