"""What to run and how: suite files, the plan of combinations, the runner and its worker processes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convbench.suites.config.suite import Suite, load_suite
    from convbench.suites.runner.run import RunResult, run

_LAZY = {
    "RunResult": "runner.run",
    "Suite": "config.suite",
    "load_suite": "config.suite",
    "run": "runner.run",
}

__all__ = ["RunResult", "Suite", "load_suite", "run"]

PLUGINS = (  # the modules with hooks, for the entry point
    "convbench.suites.cli.run",
    "convbench.suites.cli.verify",
    "convbench.suites.cli.list",
    "convbench.suites.cli.doctor",
    "convbench.suites.cli.cluster",
    "convbench.suites.definitions",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
