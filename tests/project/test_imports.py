"""Starting is cheap: looking around imports none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "pandas",
    "altair",
    "vl_convert",
    "numba",
    "triton",
    "timm",
    "numpy",
    "rich",
    "psutil",
    "scipy",
)
SCRIPT = f"""
import sys
from convbench.registry.cli.main import main
try:
    main(sys.argv[1:])
finally:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print("imported:", *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "list", "list backends --json", "list architectures --json", "list datasets --json",
     "list suites --json", "list plugins --json", "run --help", "compare --help", "data where --help", "nonsense"],
)  # fmt: skip
def test_looking_around_imports_nothing_heavy(command: str) -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *command.split()], capture_output=True, text=True)
    found = set(ended.stderr.splitlines()[-1].removeprefix("imported:").split())
    assert found <= ({"rich"} if command == "list" else set()), ended.stderr  # it prints the tables


def test_a_heavy_import_would_be_seen() -> None:
    script = SCRIPT.replace("import sys", "import sys, numpy", 1)
    ended = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == "imported: numpy"


@pytest.mark.parametrize("room", ["registry", "suites", "results", "plugins"])
def test_a_room_itself_is_light(room: str) -> None:
    script = f"import sys, convbench.{room}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"
