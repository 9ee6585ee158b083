"""The wheel: every module, TOML and data file of the four rooms, and one name in site-packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("registry", "plugins", "suites", "results")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by pip from the tree, with the build backend of this environment, without a network."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
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
    subprocess.run([*command, "--wheel-dir", out, ROOT], check=True, capture_output=True)
    (path,) = out.glob("convbench-*.whl")
    return zipfile.ZipFile(path)


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
    for sort in (".py", ".toml", ".xz", "py.typed"):
        assert any(name.endswith(sort) for name in expected), (
            f"no {sort} in the tree: what does this test hold?"
        )


def test_it_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    def read(name: str) -> str:
        (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
        return wheel.read(path).decode()

    assert "convbench = convbench.registry.cli:main" in read("entry_points.txt")
    metadata = Parser().parsestr(read("METADATA"))
    assert metadata["License-Expression"] == "MIT"
    assert any("sample" in path for path in metadata.get_all("License-File", []))  # FashionMNIST's own
    assert metadata["Requires-Python"] == ">=3.11"
