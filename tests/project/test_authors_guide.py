"""The author's guide, plugins/README.md, done as it is written: every block, in an environment of its own."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "plugins" / "README.md"
BLOCK = re.compile(
    r"(?:^(?P<lead>[^\n]*)\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
FILE = re.compile(r"`([\w./-]+\.\w+)`:$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `file` is where the line before says that it goes."""

    language: str
    text: str
    file: str | None


def blocks() -> Iterator[Block]:
    for found in BLOCK.finditer(GUIDE.read_text(encoding="utf-8")):
        named = FILE.search(found["lead"] or "")
        yield Block(found["language"], found["text"], named[1] if named else None)


@dataclass(frozen=True)
class Desk:
    """An author's folder and environment: a virtual one, on top of what is installed here."""

    folder: Path
    environment: Path

    def do(self, block: Block) -> str:
        """Write a block to its file, or run it; returns what it printed."""
        if block.file:
            path = self.folder / block.file
            assert path.parent.is_dir(), f"{block.file}: no such folder"
            path.write_text(block.text, encoding="utf-8")
            return ""
        interpreter = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": ["python", "-c"]}[block.language]
        variables = {
            **os.environ,
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        for name in ("PYTHONPATH", "PYTEST_ADDOPTS"):
            variables.pop(name, None)
        ended = subprocess.run(
            [*interpreter, block.text], cwd=self.folder, env=variables, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{block.text}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    for needed in ("bash", "cc", "sed"):
        if shutil.which(needed) is None:
            pytest.skip(f"the guide needs {needed}")
    pytest.importorskip("hatchling")
    desk = Desk(tmp_path_factory.mktemp("desk"), tmp_path_factory.mktemp("environment"))
    venv.create(desk.environment, symlinks=True)
    below = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site,) = desk.environment.glob("lib/python*/site-packages")
    (site / "below.pth").write_text(below, encoding="utf-8")
    commands = {
        "pip": '-m pip "$1" --no-index --no-build-isolation "${@:2}"',  # without a network
        "pytest": '-m pytest "$@"',
        "convbench": '-m convbench.registry "$@"',
    }
    for name, arguments in commands.items():
        path = desk.environment / "bin" / name
        path.write_text(
            f'#!/usr/bin/env bash\nexec "{desk.environment}/bin/python" {arguments}\n', encoding="utf-8"
        )
        path.chmod(0o755)
    return desk


def test_every_block_can_be_done() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(list(blocks()))
    assert [block for block in blocks() if not block.file and block.language not in ("bash", "python")] == []


@pytest.mark.exhaustive  # test_third_party.py installs, verifies and runs a package in make test
def test_from_an_empty_folder_to_a_row_in_the_table(desk: Desk) -> None:
    printed = {block.text: desk.do(block) for block in blocks()}

    def after(command: str) -> str:
        (output,) = (output for text, output in printed.items() if command in text)
        return output

    (listed,) = (line for line in after("convbench list backends").splitlines() if line.startswith("fast "))
    assert "convbench-fast 0.1.0" in listed
    assert re.search(r"^\d+ passed in", after("pytest -q convbench-fast\n"), re.MULTILINE)
    assert "conv2d 2/2" in after("use_backend")

    with (desk.folder / "results" / "fast" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["backend"] == "fast"]
    assert {row["kind"]: row["status"] for row in rows} == {"verify": "ok", "time": "ok"}
    assert {row["plugin"] for row in rows} == {"convbench-fast"}
    assert re.search(
        r"^\| fast ", (desk.folder / "results" / "fast" / "table.md").read_text("utf-8"), re.MULTILINE
    )
