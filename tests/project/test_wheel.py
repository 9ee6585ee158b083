"""The wheel: every module, TOML and data file of the four rooms, and one name in site-packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("registry", "plugins", "suites", "results")


LIBRARY = "convbench/plugins/backends/native/core/libconvbench_native.so"


def built(tree: Path, out: Path, **environment: str) -> zipfile.ZipFile:
    """The wheel that pip builds from a tree, with the build backend of this environment, without a network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run(
        [*command, "--wheel-dir", out, tree], check=True, capture_output=True, env=os.environ | environment
    )
    (path,) = out.glob("convbench-*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


def read(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's own metadata."""
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_it_puts_one_name_into_site_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = tops - {"convbench"}
    assert info.endswith(".dist-info")


def test_it_holds_every_file_of_every_room(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(ROOT / room).as_posix()
        for room in ROOMS
        for path in (ROOT / room / "convbench").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if name.startswith("convbench/")} == expected
    for sort in (".py", ".toml", ".xz", ".cu", ".cuh", "py.typed"):
        assert any(name.endswith(sort) for name in expected), (
            f"no {sort} in the tree: what does this test hold?"
        )


def test_it_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    assert "convbench = convbench.registry.cli.main:main" in read(wheel, "entry_points.txt")
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["License-Expression"] == "MIT"
    assert any("sample" in path for path in metadata.get_all("License-File", []))  # FashionMNIST's own
    assert metadata["Requires-Python"] == ">=3.11"


def test_with_a_compiler_it_carries_the_kernels_and_says_for_which_platform(wheel: zipfile.ZipFile) -> None:
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        pytest.skip("there is no compiler here")
    assert LIBRARY in wheel.namelist()
    assert "Root-Is-Purelib: false" in read(wheel, "WHEEL")
    assert Path(wheel.filename or "").stem.split("-")[2:4] == ["py3", "none"]  # any Python, one platform
    assert not str(wheel.filename).endswith("-any.whl")


def test_without_a_compiler_it_is_pure_and_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    tree = tmp_path / "tree"
    for name in (*ROOMS, "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        whole = ROOT / name
        if whole.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.so", "reference")
            shutil.copytree(whole, tree / name, ignore=skipped)
        else:
            shutil.copy(whole, tree / name)
    wheel = built(tree, tmp_path / "out", CXX="no-such-compiler")
    assert LIBRARY not in wheel.namelist()
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true" in read(wheel, "WHEEL")

    wheel.extractall(tmp_path / "site")
    script = "from convbench.registry import discover; print(discover().backend('native').unavailable())"
    said = subprocess.check_output(
        [sys.executable, "-c", script], text=True, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    )
    assert said.startswith("its library was not built")
    program = [sys.executable, "-m", "convbench", "--version"]
    said = subprocess.check_output(
        program, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    )
    assert said.startswith("convbench, version ")
