"""Plugins are loaded one by one; a broken one is shown and harms nobody."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

from conftest import Install, exhaustive
from convbench.registry import Plugin, PluginError, Registry, UnknownName, create_model, discover, use_backend
from convbench.registry.discovery.plugins import own_entry_points
from convbench.suites.cli.options import warn_of_broken_plugins

GOOD = """
    from convbench.registry import Backend, hookimpl

    @hookimpl
    def convbench_backends():
        yield Backend(name="good", summary="", load=dict)
"""

BROKEN = {
    "raises on import": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "exits on import": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "has a syntax error": ("def", "SyntaxError"),
    "implements nothing": ("x = 1", "no hook of convbench is implemented"),
    "misspells a hook": (
        """
        from convbench.registry import hookimpl
        @hookimpl
        def convbench_backend(): return []
        """,
        "unknown hook 'convbench_backend'; did you mean 'convbench_backends'?",
    ),
    "asks for what the hook has not": (
        """
        from convbench.registry import hookimpl
        @hookimpl
        def convbench_backends(everything): return []
        """,
        "everything",
    ),
    "raises in a hook": (
        """
        from convbench.registry import hookimpl
        @hookimpl
        def convbench_backends(): raise RuntimeError("no\\nluck")
        """,
        "RuntimeError: no luck",
    ),
    "exits in a hook": (
        """
        from convbench.registry import hookimpl
        @hookimpl
        def convbench_backends(): raise SystemExit(3)
        """,
        "SystemExit: 3",
    ),
    "returns no record": (
        """
        from convbench.registry import hookimpl
        @hookimpl
        def convbench_backends(): return ["good"]
        """,
        "convbench_backends must return Backend records, not 'good'",
    ),
    "returns one record": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return Backend("x", "", dict)
        """,
        "convbench_backends must return an iterable of Backend records",
    ),
    "returns nothing": (
        """
        from convbench.registry import hookimpl
        @hookimpl
        def convbench_backends(): pass
        """,
        "convbench_backends must return an iterable of Backend records, not None",
    ),
    "returns a record of another kind": (
        """
        from convbench.registry import Dataset, hookimpl
        @hookimpl
        def convbench_backends(): return [Dataset("x", "", print)]
        """,
        "convbench_backends must return Backend records, not Dataset",
    ),
    "has a name that cannot be one": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return [Backend("a:b", "", dict)]
        """,
        "'a:b' cannot be a name",
    ),
    "has a name that is no text": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return [Backend(5, "", dict)]
        """,
        "5 cannot be a name",
    ),
    "forgets a comma": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return [Backend("x", "", dict, devices=("cpu"))]
        """,
        "backend 'x': devices takes a tuple of names, such as ('cpu',), not 'cpu'",
    ),
    "has one dtype as a text": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return [Backend("x", "", dict, dtypes="float32")]
        """,
        "backend 'x': dtypes takes a tuple of names, such as ('float32',), not 'float32'",
    ),
    "hands over the ops themselves": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return [Backend("x", "", {"conv2d": len})]
        """,
        "backend 'x': load takes a function that returns the ops by name, such as lambda: {'conv2d': conv2d}",
    ),
    "offers a name twice": (
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends(): return [Backend("x", "", dict), Backend("x", "", dict)]
        """,
        "backend 'x' is offered twice by broken",
    ),
}


def plugin(registry: Registry, distribution: str) -> Plugin:
    return next(plugin for plugin in registry.plugins if plugin.distribution == distribution)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_quarantined_and_the_others_work(install: Install, fault: str) -> None:
    source, sentence = BROKEN[fault]
    install("broken", source, version="2.3")
    install("fine", GOOD)

    registry = discover()

    broken = plugin(registry, "broken")
    assert sentence in (broken.error or "")
    assert "\n" not in (broken.error or "")
    assert (broken.name, broken.version) == ("broken", "2.3")
    assert registry.backend("good").name == "good"
    assert set(registry.backends) == {"good", *discover(installed=()).backends}


@pytest.mark.parametrize("fault", [exhaustive(each) if at % 3 else each for at, each in enumerate(BROKEN)])
def test_a_broken_plugin_is_named_where_its_backend_is_asked_for(install: Install, fault: str) -> None:
    source, sentence = BROKEN[fault]
    module = install("convbench-broken", source, version="2.3")
    registry = discover()
    for ask in (
        lambda: registry.backend("broken"),
        lambda: registry.backends.matching(["broken"]),
        lambda: create_model("lenet", backend="broken", registry=registry),
        lambda: registry.architecture("broken"),
    ):
        with pytest.raises(UnknownName) as caught:
            ask()
        text = str(caught.value)
        assert "plugin 'convbench-broken' of convbench-broken 2.3 is broken: " in text
        assert sentence.replace("by broken", "by convbench-broken") in text
        assert f"{module}.py" in text
        assert "\n" not in text
    line = re.search(rf"{module}\.py, line (\d+)\)", text)
    whole_file = ("implements nothing", "asks for what the hook has not", "offers a name twice")
    assert (line is None) == (fault in whole_file)
    if line is not None:
        assert re.match(r"@hookimpl|def|import|raise", dedent(source).splitlines()[int(line[1]) - 1])


def test_a_broken_plugin_is_warned_of_where_all_backends_are_asked_for(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("broken", "1 / 0")
    for patterns, warned in ((["*"], True), (["torch", "im2col"], False)):
        warn_of_broken_plugins(discover(), patterns)
        said = capsys.readouterr().err
        assert (
            said.startswith("warning: plugin 'broken' of broken 1.0 is broken: ZeroDivisionError") == warned
        )


def test_of_several_broken_plugins_the_one_that_is_asked_for_is_named(install: Install) -> None:
    install("convbench-fast", "1 / 0")
    install("slow", "import no_such_library")
    with pytest.raises(UnknownName, match="ZeroDivisionError") as caught:
        use_backend(nn.Conv2d(1, 1, 1), "fast")
    assert "no_such_library" not in str(caught.value)
    with pytest.raises(UnknownName, match=r"ZeroDivisionError.*no_such_library"):
        discover().backend("unheard-of")
    assert "ZeroDivisionError" not in str(discover().backends.get("fast"))


def test_a_package_without_an_entry_point_is_named(install: Install) -> None:
    install("convbench-fast", GOOD)
    (info,) = Path(sys.path[0]).glob("*.dist-info")
    (info / "entry_points.txt").write_text("[convbenchs]\nfast = fast\n")
    with (info / "METADATA").open("a") as metadata:
        metadata.write("Requires-Dist: convbench>=0.1\n")
    with pytest.raises(UnknownName) as caught:
        discover().backend("fast")
    assert (
        "package 'convbench-fast' 1.0 is installed, and registers no plugin: it has no entry point in the group "
        "'convbench', only in convbenchs; available: "
    ) in str(caught.value)


def test_a_plugin_with_one_bad_record_gives_none_at_all(install: Install) -> None:
    install(
        "half",
        """
        from convbench.registry import Architecture, Backend, hookimpl

        @hookimpl
        def convbench_backends(): return [Backend("half", "", dict)]

        @hookimpl
        def convbench_architectures(): return [Architecture("net", "", print), Architecture("net", "", print)]
        """,
    )
    registry = discover()
    assert "architecture 'net' is offered twice by half" in (plugin(registry, "half").error or "")
    assert "half" not in registry.backends
    assert "net" not in registry.architectures


def test_builtins_come_in_as_third_parties_do(install: Install) -> None:
    point = EntryPoint("fine", install("fine", GOOD), "convbench")
    registry = discover(builtins=[point], installed=())
    assert list(registry.backends) == ["good"]
    assert registry.backends.plugin("good").distribution == "convbench"


def test_every_builtin_loads() -> None:
    registry = discover(installed=())
    rooms = [import_module(f"convbench.{room}") for room in ("plugins", "registry", "results", "suites")]
    assert [(plugin.module, plugin.distribution, plugin.error) for plugin in registry.plugins] == [
        (module, "convbench", None) for room in rooms for module in room.PLUGINS
    ]
    assert {"im2col", "loops", "torch"} <= set(registry.backends)
    assert {"lenet", "mlp"} <= set(registry.architectures)
    assert {"fashion-mnist", "fashion-mnist-sample"} <= set(registry.datasets)
    assert "lenet" in registry.suites


def test_a_source_tree_that_is_not_installed_lists_the_same_plugins() -> None:
    """Without entry points, the packages of the namespace are looked at; with them, only these."""
    points = own_entry_points(())
    assert [point.name for point in points] == ["plugins", "registry", "results", "suites"]
    assert discover(builtins=points, installed=()).plugins == discover(installed=()).plugins


def test_an_entry_point_may_name_several_modules(install: Install) -> None:
    good, bad = install("fine", GOOD), install("bad", "raise OSError('no luck')")
    several = install("several", f"PLUGINS = ({good!r}, {bad!r})")
    point = EntryPoint("several", f"{several}:PLUGINS", "convbench")
    registry = discover(builtins=[point], installed=())
    assert [(plugin.name, plugin.error) for plugin in registry.plugins] == [
        (good, None),
        (bad, "OSError: no luck"),
    ]
    assert list(registry.backends) == ["good"]


def test_a_missing_list_of_plugins_is_one_broken_plugin() -> None:
    point = EntryPoint("nowhere", "convbench.nowhere:PLUGINS", "convbench")
    (plugin,) = discover(builtins=[point], installed=()).plugins
    assert (plugin.name, plugin.error) == (
        "nowhere",
        "ModuleNotFoundError: No module named 'convbench.nowhere'",
    )


def test_a_builtin_backend_is_named_after_its_file() -> None:
    catalog = discover(installed=()).backends
    for name in catalog:
        assert name.startswith(catalog.plugin(name).module.rpartition(".")[2])


def test_two_distributions_may_choose_the_same_entry_point_name(install: Install) -> None:
    install("first", GOOD, entry_point="plugin")
    install("second", GOOD.replace('"good"', '"also-good"'), entry_point="plugin")
    registry = discover()
    assert {"good", "also-good"} <= set(registry.backends)
    assert len({plugin.name for plugin in registry.plugins}) == len(registry.plugins)


def test_a_module_behind_two_entry_points_is_taken_once(install: Install) -> None:
    module = install("fine", GOOD)
    points = [EntryPoint("a", module, "convbench"), EntryPoint("b", module, "convbench")]
    registry = discover(builtins=(), installed=points)
    assert [plugin.error for plugin in registry.plugins] == [
        None,
        f"{module} is already registered by another entry point",
    ]
    assert list(registry.backends) == ["good"]


def test_a_suite_is_named_after_its_file(install: Install) -> None:
    install(
        "suites",
        """
        from pathlib import Path
        from convbench.registry import hookimpl

        @hookimpl
        def convbench_suites(): return [Path("somewhere/nightly.toml")]
        """,
    )
    assert discover().suite("nightly") == Path("somewhere/nightly.toml")


def test_nothing_is_loaded_before_it_is_used(install: Install) -> None:
    install(
        "lazy",
        """
        from convbench.registry import Backend, hookimpl

        def load(): raise OSError("heavy")

        @hookimpl
        def convbench_backends(): return [Backend("lazy", "", load)]
        """,
    )
    backend = discover().backend("lazy")
    with pytest.raises(
        PluginError, match=r"backend 'lazy' cannot be loaded: OSError: heavy \(.*\.py, line 4\)"
    ):
        _ = backend.ops
