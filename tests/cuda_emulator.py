"""A `Machine` that runs the kernels of `cuda` and `cuda_naive` on the CPU, and backends of them.

Sources, launches and everything above are the backends' own; `emulator/primitives.cuh` takes the place of the one
header that has PTX in it, and the host's C++ compiler that of NVRTC.
"""

from __future__ import annotations

import ctypes
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Any

import torch

from convbench.plugins.backends import cuda, cuda_naive
from convbench.plugins.backends.cuda import driver, launch_config, pooling, torch_ops
from convbench.plugins.backends.cuda.compiler import Program
from convbench.plugins.backends.cuda_naive.convolution import Convolution as NaiveConvolution
from convbench.registry import Backend

PRIMITIVES = Path(__file__).parent / "emulator" / "primitives.cuh"
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
FLAGS = "-std=c++17 -O1 -fPIC -shared -fno-strict-aliasing -ffp-contract=off -w"


@dataclass
class Emulator:
    """Compiles each program once, into a folder of its own; as many processors as a test wants."""

    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="convbench-emulator-")))
    count: int = 4
    device_type: str = "cpu"
    launched: list[tuple[Program, str]] = field(default_factory=list)
    _libraries: dict[Program, ctypes.CDLL] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock)

    def processors(self, device: torch.device) -> int:
        return self.count

    def launch(self, device: torch.device, launch: driver.Launch) -> None:
        program, kernel, grid, threads, shared, arguments = launch
        assert device.type == "cpu"
        assert max(grid[1:]) <= 65535
        kept = driver.parameters(arguments)
        pointers = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
        with self._lock:
            self.launched.append((program, kernel))
            run = getattr(self._library(program), f"emulate_{kernel}")
            run.restype = ctypes.c_char_p
            complaint = run((ctypes.c_uint * 3)(*grid), threads, shared, pointers)
        if complaint:
            raise RuntimeError(f"{kernel} ({program}): {complaint.decode()}")

    def _library(self, program: Program) -> ctypes.CDLL:
        if program not in self._libraries:
            folder = self.folder / program.digest("host")[:16]
            folder.mkdir(exist_ok=True)
            for name, text in program.headers.items():
                if name != PRIMITIVES.name:
                    (folder / name).write_text(text)
            (folder / "kernel.cpp").write_text(f"{program.source}\n{_exports(program)}")
            command = [*self._compiler(), *(f"-D{name}={value}" for name, value in program.macros)]
            subprocess.run([*command, "-o", folder / "kernel.so", folder / "kernel.cpp"], check=True)
            self._libraries[program] = ctypes.CDLL(str(folder / "kernel.so"))
        return self._libraries[program]

    def _compiler(self) -> list[str]:
        """The command, with the primitives as a header that GCC reads once and for all."""
        assert COMPILER
        common = self.folder / "common"
        command = [COMPILER, *shlex.split(FLAGS)]
        if not common.exists():
            common.mkdir()
            header = shutil.copy(PRIMITIVES, common)
            subprocess.run([*command, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)
        return [*command, f"-I{common}"]


def _exports(program: Program) -> str:
    """`EMULATED(name)` of every kernel that the program's macros leave in its source."""
    bounds = r"(?:__launch_bounds__\(.*?\)(?:\s*//.*)?\s+)?"
    kernels = re.findall(rf"^KERNEL {bounds}(\w+)\(", program.source, re.MULTILINE)
    macros = dict(program.macros)
    left_out = {
        "direct" if "ROWS_OF_TAPS" in macros else "direct_weight_gradient",
        "gemm" if "WEIGHT_GRADIENT" in macros else "gemm_weight_gradient",
    }
    return "".join(f"EMULATED({kernel})\n" for kernel in kernels if kernel not in left_out)


def namespace(emulator: Emulator, name: str) -> str:
    """What its ops are registered under, in `torch.ops`."""
    return f"convbench_emulated_{name}_{id(emulator):x}"


def emulated(emulator: Emulator, name: str) -> Backend:
    """The backend `cuda` or `cuda_naive` on an emulator; each call registers ops of its own."""
    backend = cuda if name == "cuda" else cuda_naive
    (record,) = backend.convbench_backends()
    place = namespace(emulator, name), "cpu", backend.DTYPES
    pools = pooling.Pooling(emulator, fixed=name == "cuda")
    if name == "cuda":
        ops = torch_ops.operations(*place, launch_config.Convolution(emulator), pools)
    else:
        ops = torch_ops.operations(*place, NaiveConvolution(emulator), pools)
    return replace(
        record, name=f"emulated_{name}", load=lambda: ops, devices=("cpu",), unavailable=lambda: None
    )


def main() -> None:
    """Hold the emulated backends against the whole contract: `python tests/cuda_emulator.py`. It takes minutes."""
    import sys

    from convbench.registry import verify

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    for name in sys.argv[1:] or ("cuda", "cuda_naive"):
        report = verify(emulated(Emulator(), name))
        for outcome in report.outcomes:
            if outcome.state != "passed":
                print(f"{outcome.state}: {outcome.case}, {outcome.dtype}: {outcome.message}")
        print(f"{name}: {report.count('passed')} of {len(report.outcomes)} passed")


if __name__ == "__main__":
    main()
