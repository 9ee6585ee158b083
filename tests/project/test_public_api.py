"""What can be imported from each room, pinned: a name that goes away breaks somebody's plugin or script."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

ROOMS = {
    "registry": """
        AmbiguousName Architecture Backend ConvbenchError DataError Dataset GateFailed Images NothingRan OPS Op
        Plugin PluginError Recipe Registry Report Routed UnknownName Unsupported UsageError create_model discover
        hookimpl list_models unroute use_backend verify
    """,
    "plugins": "",
    "suites": "RunResult Suite load_suite run",
    "results": """
        Combination Comparison Epoch Row RunStore Sample compare comparison_table read_results table_markdown
    """,
}


def public(room: ModuleType) -> list[str]:
    return list(getattr(room, "__all__", ()))


@pytest.mark.parametrize("room", ROOMS)
def test_public_names(room: str) -> None:
    assert set(ROOMS[room].split()) <= set(public(import_module(f"convbench.{room}")))


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_there_and_documented(room: str) -> None:
    module = import_module(f"convbench.{room}")
    for name in public(module):
        thing = getattr(module, name)
        assert thing is not None
        if callable(thing) and name != "hookimpl":
            assert thing.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("room", ROOMS)
def test_a_name_that_is_not_there_is_an_attribute_error(room: str) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = import_module(f"convbench.{room}").no_such_name
