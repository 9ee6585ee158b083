"""The native core under the sanitizers: drawn sizes and options, and many threads (`native_fuzz.cpp`)."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from convbench.plugins.backends.native import build

DRIVER = Path(__file__).parents[2].joinpath("native_fuzz.cpp")
# -O0 compiles in a fifth of the time; a conversion or division of numbers has no undefined result that we rely on
FLAGS = (
    "-std=c++17", "-O0", "-g1", "-w", "-fno-exceptions", "-fno-rtti", "-march=native", "-pthread",
    "-DISA=of_baseline", "-DISA_NAME=baseline", '-DSOURCE_DIGEST=""', f"-I{build.SOURCES}",
)  # fmt: skip
ADDRESSES = (
    "-fsanitize=address,undefined", "-fno-sanitize=float-cast-overflow,float-divide-by-zero",
    "-fno-sanitize-recover=all",
)  # fmt: skip

pytestmark = pytest.mark.exhaustive


def compiled(folder: Path, *sanitizers: str) -> Path:
    """The driver with the core, as one program that is watched."""
    try:
        compiler = build._compiler()
    except build.CannotBuild as reason:
        pytest.skip(str(reason))
    program = folder / "native_fuzz"
    sources = [build.SOURCES / "kernels.cpp", build.SOURCES / "native.cpp", DRIVER]
    made = subprocess.run(
        [*compiler, *FLAGS, *sanitizers, *sources, "-o", program], capture_output=True, text=True
    )
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip(f"the compiler has no sanitizers: {made.stderr.strip().splitlines()[-1]}")
    assert not made.returncode, made.stderr
    return program


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


run = partial(subprocess.run, capture_output=True, text=True, timeout=200)


def test_no_call_reads_or_writes_beyond_its_tensors(folder: Path) -> None:
    program = compiled(folder, *ADDRESSES)
    ended = run([program, os.environ.get("CONVBENCH_FUZZ_SEED", "1"), "15000"])
    assert not ended.returncode, ended.stderr[-3000:]
    assert ended.stdout == "15000 calls\n"


def test_threads_share_nothing_that_they_write(folder: Path) -> None:
    program = compiled(folder, "-fsanitize=thread")
    ended = run([program, "1", "300", "4"])
    assert not ended.returncode, (ended.stdout + ended.stderr)[-3000:]
    assert ended.stdout == "1200 calls\n"
