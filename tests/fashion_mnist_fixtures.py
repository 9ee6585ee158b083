"""A small dataset in place of FashionMNIST, and a machine of its own to look for it on.

Shared by test_fashion_mnist.py and test_data_command.py. No test needs a network: a fake torchvision, given
to the downloading child by PYTHONPATH, plays the mirror.

There are no assertions here, and the two import it before pytest does: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import textwrap
from pathlib import Path

import pytest

from convbench.plugins.datasets.fashion_mnist import debian_package, sources
from convbench.plugins.datasets.fashion_mnist import files as copies
from convbench.plugins.datasets.idx import IdxFile

Contents = tuple[bytes, ...]


@pytest.fixture(scope="session")
def small_files() -> tuple[IdxFile, ...]:
    """The table of a small dataset: 300 training and 100 test images."""
    files = []
    for file, count in zip(copies.SAMPLE, (300, 300, 100, 100), strict=True):
        shape = (count, *file.shape[1:])
        files.append(IdxFile(file.name, shape, hashlib.sha256(_cut(file, shape)).hexdigest()))
    return tuple(files)


@functools.cache
def _sample_contents() -> dict[str, bytes]:
    return {file.name: bytes(data) for file, data in zip(copies.SAMPLE, copies.read_sample(), strict=True)}


def _cut(file: IdxFile, shape: tuple[int, ...]) -> bytes:
    cut = IdxFile(file.name, shape, "")
    start = len(cut.header)
    return cut.header + _sample_contents()[file.name][start : cut.size_bytes]


@pytest.fixture
def published(small_files: tuple[IdxFile, ...], monkeypatch: pytest.MonkeyPatch) -> Contents:
    """The small dataset as the published one; returns the content of its files."""
    monkeypatch.setattr(copies, "FULL", small_files)
    return tuple(_cut(file, file.shape) for file in small_files)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A machine of its own: no data in any usual place, and a mirror that cannot be reached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    monkeypatch.setattr(sources, "SYSTEM_ROOT", tmp_path / "share")
    monkeypatch.setattr(debian_package, "unavailable", lambda: "this machine has no apt-get")
    mirror = Mirror(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(mirror.package_root), prepend=os.pathsep)
    mirror.behave("raise RuntimeError('Error downloading x:\\nthe fake mirror cannot be reached')")
    return mirror


class Mirror:
    """A fake torchvision, as the downloading child process imports it."""

    def __init__(self, tmp_path: Path) -> None:
        self.package_root = tmp_path / "fake"
        self.files = tmp_path / "mirror"
        self.log = tmp_path / "downloads.log"

    def behave(self, body: str) -> None:
        """Let `FashionMNIST(root, download=True)` run `body`; `raw` is its folder, `log` counts the calls."""
        source = f"""
            import pathlib, shutil, time
            class FashionMNIST:
                def __init__(self, root, download):
                    files = pathlib.Path({str(self.files)!r})
                    with open({str(self.log)!r}, "a") as log:
                        log.write("download\\n")
                    raw = pathlib.Path(root, "FashionMNIST", "raw")
                    raw.mkdir(parents=True, exist_ok=True)
        """
        package = self.package_root / "torchvision" / "datasets.py"
        package.parent.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        lines = textwrap.indent(textwrap.dedent(body), " " * 8)
        package.write_text(textwrap.dedent(source) + lines + "\n")

    def serve(self, contents: Contents, delay_seconds: float = 0) -> None:
        put(contents, self.files)
        self.behave(
            f"for file in files.iterdir():\n    time.sleep({delay_seconds / 4})\n    shutil.copy(file, raw)"
        )

    @property
    def downloads(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def put(contents: Contents, directory: Path, suffix: str = "") -> Path:
    """Write the four files into `directory`, plain or gzipped."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in zip(copies.FULL, contents, strict=True):
        data = gzip.compress(content, 1) if suffix == ".gz" else content
        (directory / (file.name + suffix)).write_bytes(data)
    return directory


def cache() -> Path:
    return sources.cache_root() / "fashion-mnist"


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
