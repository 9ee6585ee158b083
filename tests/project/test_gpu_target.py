"""`make gpu`: its pieces name what is there, keep to their time, and go on where they were interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conftest import exhaustive
from convbench.registry import discover

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "scripts" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("which", [slice(1), exhaustive(slice(1, None))], ids=["first", "others"])
def test_every_command_can_be_planned_here(gpu: ModuleType, tmp_path: Path, which: slice) -> None:
    """Each option is one that `convbench run` knows, and each suite and backend is registered."""
    plan = gpu.Plan(discover(installed=()), "nvidia-h200", tmp_path, ["--data-dir", "/data"])
    ran = []
    for name, piece in gpu.PIECES.items():
        for command in piece.commands(plan):
            if command[3] == "run":
                assert command[-2:] == ["--out", str(tmp_path / f"{name}-nvidia-h200")]
                ran.append(command)
    assert len(ran) >= 10
    script = "import json, sys; from convbench.registry.cli.main import main; main(json.loads(sys.argv[1]))"
    for command in ran[:: len(ran) // 2][which]:  # a plan takes seconds
        options = [each if each != "cuda" else "cpu" for each in command[3:-2]]
        options = ["--dry-run" if each == "--data-dir" else each for each in options if each != "/data"]
        ended = subprocess.run(
            [*python(script), json.dumps(options)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr


def test_a_second_call_completes_the_first(gpu: ModuleType, tmp_path: Path) -> None:
    plan = gpu.Plan(discover(installed=()), "nvidia-h200", tmp_path, [])
    target = tmp_path / "lenet-nvidia-h200"
    target.mkdir()
    (target / "results.csv").touch()
    (command,) = gpu.PIECES["lenet"].commands(plan)
    assert command[-2:] == ["--resume", str(target)]


def test_a_piece_is_interrupted_when_its_time_is_up(gpu: ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    patient = python(
        f"import time, pathlib\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pathlib.Path({str(kept)!r}).touch()"
    )
    piece = gpu.Piece("", lambda plan: iter([python("pass"), patient, python("raise SystemExit(4)")]))
    began = time.monotonic()
    codes = list(gpu.within(commands_of(piece), 2.0))
    assert time.monotonic() - began < 20
    assert codes == [0, gpu.INTERRUPTED, gpu.INTERRUPTED]
    assert kept.exists()


def commands_of(piece: object) -> Iterator[list[str]]:
    return piece.commands(None)  # type: ignore[attr-defined, no-any-return]


def test_what_failed_is_told_and_what_was_not_done_is_tried_again(gpu: ModuleType) -> None:
    calls = []

    def commands(plan: object) -> Iterator[list[str]]:
        calls.append(plan)
        yield python("raise SystemExit(130)" if len(calls) < 3 else "raise SystemExit(1)")

    piece = gpu.Piece("", commands)
    assert gpu.attempt(piece, None, 2) == "not done within 530 s: run it again, and it goes on"
    calls.clear()
    assert gpu.attempt(piece, None, 4) == "exit code 1"
    assert len(calls) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS)}
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu.py", "verify"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == "make gpu: torch sees no CUDA device\n"
    assert ended.stdout == ""


ROOMS = ("registry", "plugins", "suites", "results")
