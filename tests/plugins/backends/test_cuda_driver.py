"""The calls of the driver that launch a kernel, made to a driver that prints them and runs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convbench.plugins.backends.cuda import compiler
from cuda_emulator import COMPILER

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
    pytest.mark.skipif(compiler.unavailable() is not None, reason=str(compiler.unavailable())),
]
SOURCE = Path(__file__).parents[2] / "emulator" / "driver.c"

LAUNCHES = """
import contextlib, types
import torch
from convbench.plugins.backends.cuda import driver
from convbench.plugins.backends.cuda.compiler import program

torch.cuda.device = lambda device: contextlib.nullcontext()
torch.cuda.current_stream = lambda device: types.SimpleNamespace(cuda_stream=0x1234)
torch.cuda.get_device_capability = lambda index: (9, 0)
driver.cubin = lambda program, architecture, version: f"?{architecture} {version}".encode()
gpu, sums, tensor = driver.Gpu(), program("sums.cu", ELEMENT="float"), torch.tensor([1.5])
for kernel, shared in (("small", 0), ("large", 60000), ("large", 60000), ("missing", 0)):
    launch = driver.Launch(sums, kernel, (4, 2, 1), 128, shared, (42, tensor, None))
    gpu.launch(torch.device("cuda", 0), launch)
"""


def test_launches_reach_the_driver(tmp_path: Path) -> None:
    """A program is loaded once, a function found once, and only large shared memory is asked for."""
    command = ["cc", "-shared", "-fPIC", "-w", "-o", tmp_path / "libcuda.so.1", SOURCE]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", LAUNCHES], env=environment, capture_output=True, text=True)
    launch = "launch 4 2 1, 128 threads, {} bytes, stream 0x1234: 42 1.5 (nil)"
    assert ended.stdout.splitlines() == [
        "retain 0",
        "load sm_",
        "function small",
        launch.format(0),
        "function large",
        "attribute 8 60000",
        launch.format(60000),
        launch.format(60000),
        "function missing",
    ], ended.stderr
    assert (
        "LaunchFailed: missing (sums.cu ELEMENT=float): named symbol not found (CUDA error 500)"
        in ended.stderr
    )
