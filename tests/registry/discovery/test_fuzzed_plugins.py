"""Plugins whose hooks return anything: taken, or set aside with a sentence; the others are not affected."""

from __future__ import annotations

import types
from dataclasses import fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from convbench.registry import Architecture, Backend, Dataset, hookimpl
from convbench.registry.discovery.plugins import discover
from fuzzing import VALUES, fuzzed

RECORDS = {
    "convbench_backends": Backend("x", "summary", dict),
    "convbench_architectures": Architecture("x", "summary", lambda **options: None),  # type: ignore[arg-type, return-value]
    "convbench_datasets": Dataset("x", "summary", lambda root: None),  # type: ignore[arg-type, return-value]
    "convbench_suites": Path("x.toml"),
}
ANYTHING = st.sampled_from([*VALUES, object(), Backend, Path("."), Path("a/..")]) | st.text(max_size=5)


@st.composite
def records(draw: DrawFn, hook: str) -> Any:
    """A record with a field or two that hold anything."""
    record = RECORDS[hook]
    if isinstance(record, Path):
        return Path(draw(st.text(max_size=8)) + ".toml")
    for field in draw(st.lists(st.sampled_from([each.name for each in fields(record)]), max_size=2)):
        record = replace(record, **{field: draw(ANYTHING)})
    return record


def never_ending() -> Any:
    """A list in which it stands itself."""
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@st.composite
def plugins(draw: DrawFn) -> Any:
    """A module with a hook that returns records and other things."""
    module = types.SimpleNamespace()
    for hook in draw(
        st.lists(st.sampled_from([*RECORDS, "convbench_backend"]), min_size=1, max_size=2, unique=True)
    ):
        one: SearchStrategy[Any] = records(hook) if hook in RECORDS else ANYTHING
        returned = draw(
            st.lists(one | ANYTHING, max_size=2)
            | st.lists(one, max_size=2)
            | ANYTHING
            | st.builds(never_ending)
        )
        setattr(module, hook, hookimpl(named(hook, returned)))
    return module


def named(name: str, returned: Any) -> Any:
    def hook() -> Any:
        return returned

    hook.__name__ = name
    return hook


def sound() -> Any:
    return types.SimpleNamespace(
        convbench_backends=hookimpl(named("convbench_backends", [Backend("good", "", dict)]))
    )


@fuzzed(
    30,
    800,
    module=plugins(),
    name=st.text(min_size=1, max_size=6) | st.sampled_from(["good", "a b", "\0", "x" * 9000]),
)
def test_a_plugin_is_taken_or_set_aside(module: Any, name: str) -> None:
    modules = {"sound": sound(), "fuzzed": module}

    def load(point: EntryPoint) -> Any:
        return modules[point.value]

    points = [EntryPoint("sound", "sound", "convbench"), EntryPoint(name, "fuzzed", "convbench")]
    with mock.patch.object(EntryPoint, "load", load):
        registry = discover(builtins=[], installed=points)
    assert registry.backend("sound:good" if len(registry.backends) > 1 else "good").name == "good"
    assert len(registry.plugins) == 2
    for plugin in registry.broken:
        assert plugin.error
        assert "\n" not in plugin.fault
        assert len(plugin.fault) < 2000
    for catalog in (registry.backends, registry.architectures, registry.datasets, registry.suites):
        assert len(list(catalog)) == len(catalog)
        assert catalog.table() is not None
        assert repr(catalog)
        for each in catalog:
            catalog.find(each)
