"""Four rooms, one namespace, imports one way: read from the source, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "registry": {"registry"},
    "plugins": {"plugins", "registry"},
    "results": {"results", "registry"},
    "suites": {"suites", "results", "registry"},
}
HOOKS = {"backends", "architectures", "datasets"}  # of convbench.plugins: reached through the registry alone


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
    assert wrong_imports("results", "import convbench.suites.plan") == ["convbench.suites.plan"]
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
