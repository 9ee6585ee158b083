"""Four rooms, one namespace, imports one way, small folders: read from the source, nothing is imported."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "registry": {"registry"},
    "plugins": {"plugins", "registry"},
    "results": {"results", "registry"},
    "suites": {"suites", "results", "registry"},
}
HOOKS = {"backends", "architectures", "datasets"}  # of convbench.plugins: reached through the registry alone
MOST_MODULES = 14  # of a folder
MOST_LINES = 500  # of a module
ONE_PLUGIN_EACH = {"plugins/backends", "plugins/architectures"}  # a folder here grows with what we ship
LONGER: dict[str, str] = {}  # a module of more lines, and why


def modules(room: str) -> Iterator[Path]:
    return (ROOT / room / "convbench").rglob("*.py")


def imported(source: str) -> Iterator[str]:
    """Every module of convbench that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError("relative imports hide which room they reach")
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "convbench")


def wrong_imports(room: str, source: str) -> list[str]:
    return [name for name in imported(source) if name.split(".")[1] not in MAY_IMPORT[room]]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in modules(room)
        if (names := wrong_imports(room, path.read_text(encoding="utf-8")))
    }
    assert wrong == {}


def test_a_wrong_import_would_be_seen() -> None:
    assert wrong_imports("registry", "def f():\n    from convbench.plugins.backends import torch") == [
        "convbench.plugins.backends.torch"
    ]
    assert wrong_imports("results", "import convbench.suites.config.plan") == ["convbench.suites.config.plan"]
    assert wrong_imports("plugins", "from convbench import results") == ["convbench.results"]
    assert wrong_imports("suites", "import torch\nfrom convbench.results import compare") == []


def test_backends_and_architectures_do_not_import_each_other_across_kinds() -> None:
    """Each kind of plugin stands alone, so that any of them could move to a package of its own."""
    plugins = ROOT / "plugins" / "convbench" / "plugins"
    for kind in HOOKS:
        for path in (plugins / kind).rglob("*.py"):
            for name in imported(path.read_text(encoding="utf-8")):
                parts = name.split(".")
                assert parts[1] != "plugins" or parts[2] not in HOOKS - {kind}, f"{path.name} imports {name}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_convbench_is_a_namespace_and_every_inner_package_is_not(room: str) -> None:
    namespace = ROOT / room / "convbench"
    assert not (namespace / "__init__.py").exists()
    program = {"__main__.py"} if room == "registry" else set()  # `python -m convbench`
    assert {path.name for path in namespace.iterdir()} - {"__pycache__"} == {room, *program}
    assert (namespace / room / "py.typed").exists()
    packages = {path.parent for path in modules(room)} - {namespace}
    assert [package for package in packages if not (package / "__init__.py").exists()] == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_says_what_it_is_for(room: str) -> None:
    text = (ROOT / room / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {room}")
    assert "import" in text


def names_of_other_rooms(room: str, source: str) -> list[str]:
    """Strings that name modules of rooms that a room may not import, as `import_module` would take them."""
    others = tuple(f"convbench.{other}." for other in set(MAY_IMPORT) - MAY_IMPORT[room])
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [text for text in constants if isinstance(text, str) and text.startswith(others)]


def test_the_registry_names_no_module_of_another_room() -> None:
    """Not even in a string: what convbench ships comes in through entry points, as a third party does."""
    wrong = {path.name: names_of_other_rooms("registry", path.read_text()) for path in modules("registry")}
    assert not any(wrong.values()), wrong
    assert names_of_other_rooms("registry", 'import_module("convbench.suites.run")') == [
        "convbench.suites.run"
    ]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_lists_its_plugins_behind_an_entry_point(room: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["convbench"][room] == f"convbench.{room}:PLUGINS"
    source = (ROOT / room / "convbench" / room / "__init__.py").read_text(encoding="utf-8")
    (listed,) = (
        ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PLUGINS"
    )
    with_hooks = {dotted(each, room) for each in modules(room) if "\n@hookimpl\n" in each.read_text()}
    assert sorted(listed) == sorted(with_hooks)


def dotted(path: Path, room: str) -> str:
    """The name that a module is imported by."""
    parts = path.relative_to(ROOT / room).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_at_once(statements: list[ast.stmt]) -> Iterator[str]:
    """Names of convbench that statements import when the module is imported, but not for type checkers alone."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from imported(ast.unparse(statement))
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from imported_at_once(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody", "handlers"):
                for each in getattr(statement, block, []):
                    yield from imported_at_once(each.body if isinstance(each, ast.ExceptHandler) else [each])


def cycle(sources: dict[str, str]) -> list[str]:
    """Modules, by name, that import each other in a circle; none is best."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = imported_at_once(ast.parse(source).body)
        # `from package import name` is the module of that name where there is one, or else the package
        reached = (name if name in sources else name.rpartition(".")[0] for name in names)
        graph[module] = {each for each in reached if each in sources and each != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    rooms = [(path, room) for room in MAY_IMPORT for path in modules(room)]
    assert cycle({dotted(path, room): path.read_text(encoding="utf-8") for path, room in rooms}) == []


def test_a_circle_would_be_seen() -> None:
    there, back = "from convbench.a import b", "import convbench.a.c\n"
    assert set(cycle({"convbench.a.c": there, "convbench.a.b": back})) == {"convbench.a.b", "convbench.a.c"}
    later = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {back}def f():\n    {back}"
    assert cycle({"convbench.a.c": there, "convbench.a.b": later}) == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_folders_and_modules_are_small(room: str) -> None:
    """A longer one answers a second question."""
    inside = ROOT / room / "convbench"
    folders: dict[str, int] = {}
    for path in modules(room):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES or path.relative_to(inside).as_posix() in LONGER, f"{path}: {lines} lines"
        if path.name != "__init__.py":
            folder = path.parent.relative_to(inside).as_posix()
            folders[folder] = folders.get(folder, 0) + 1
    crowded = {name: number for name, number in folders.items() if number > MOST_MODULES}
    assert crowded.keys() <= ONE_PLUGIN_EACH, crowded
