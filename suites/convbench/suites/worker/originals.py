"""What no plugin may replace in a worker: what convbench's own modules call, and these modules themselves."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from convbench.registry.integrity.monkeypatch_guard import FOUNDATIONS, Originals, Owner

ROOMS = ("convbench.registry", "convbench.suites", "convbench.results")


@cache
def originals() -> Originals:
    """As they were at the first call, which a worker's module makes while no plugin is loaded."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith(ROOMS)]
    return Originals([*FOUNDATIONS, *modules, *(kind for module in modules for kind in _classes(module))])


def _classes(module: ModuleType) -> list[Owner]:
    return [
        member
        for member in vars(module).values()
        if isinstance(member, type) and member.__module__ == module.__name__
    ]
