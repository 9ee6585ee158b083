"""What is compiled: a source of ours with the numbers that it is made for, to a cubin for one architecture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from convbench.plugins.backends.cuda import compiler

KERNELS = Path(__file__).with_name("kernels")
ELEMENTS = {
    "float32": "float",
    "float64": "double",
    "bfloat16": "bf16",
    "float16": "fp16",
}  # by torch's names


@dataclass(frozen=True)
class Program:
    """A source file and the macros it is compiled with. `str()` names it as messages and tables do."""

    path: Path
    macros: tuple[tuple[str, str | int], ...] = ()

    @property
    def source(self) -> str:
        return _text(self.path)

    @property
    def headers(self) -> dict[str, str]:
        """What sources may include, by name."""
        return {path.name: _text(path) for path in sorted(KERNELS.glob("*.cuh"))}

    def options(self, architecture: str) -> list[str]:
        """Of NVRTC; the log then says how many registers each kernel has, and what it spills."""
        flags = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v"]
        flags.append("--device-as-default-execution-space")  # lambdas are for the device as well
        return flags + [f"-D{name}={value}" for name, value in self.macros]

    def digest(self, architecture: str) -> str:
        """Of everything that the cubin depends on but the compiler, in hexadecimal digits."""
        found = hashlib.sha256()
        for text in (self.source, *self.headers, *self.headers.values(), *self.options(architecture)):
            found.update(text.encode() + b"\0")
        return found.hexdigest()

    def compiled(self, architecture: str) -> compiler.Compiled:
        """The cubin for `sm_80`, `sm_90` and so on, made now.

        Raises:
            CompilationFailed: NVRTC is missing, does not know the architecture, or found an error.
        """
        return compiler.compiled(self.path.name, self.source, self.headers, self.options(architecture))

    def __str__(self) -> str:
        return " ".join([self.path.name, *(f"{name}={value}" for name, value in self.macros)])


def program(name: str, **macros: str | int) -> Program:
    """Of a file in `kernels/`."""
    return Program(KERNELS / name, tuple(macros.items()))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
