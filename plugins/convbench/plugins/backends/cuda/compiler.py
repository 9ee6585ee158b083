"""Compile a kernel's source to a cubin by NVRTC, without nvcc and without a GPU, and keep cubins on disk.

torch's CUDA builds bring both NVRTC and `cuda.bindings`, which calls it. The name of a file in the cache depends
on source, headers, macros, architecture, and the versions of NVRTC and the driver. The file begins with a checksum
of the rest: one that was cut short or damaged is compiled again. Where nothing can be written, each process
compiles for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from convbench.registry import ConvbenchError
from convbench.registry.caching import cache_directory, write_whole

MISSING = "NVRTC or cuda-bindings is missing: install torch's CUDA build, or convbench[cuda]"
KERNELS = Path(__file__).with_name("kernels")
ELEMENTS = {
    "float32": "float",
    "float64": "double",
    "bfloat16": "bf16",
    "float16": "fp16",
}  # by torch's names
CHECKSUM = 32  # bytes


class CompilationFailed(ConvbenchError):
    """NVRTC refused a kernel; the message has its words."""


class Compiled(NamedTuple):
    """A cubin, and the compiler's log, with registers and spills."""

    cubin: bytes
    log: str


def find() -> str | None:
    """Where the library is; None where it, or the package that calls it, is missing."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return None
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        return str(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except DynamicLibNotFoundError:
        return None


@cache
def unavailable() -> str | None:
    """Why nothing can be compiled here, in one line; torch is not imported."""
    return MISSING if find() is None else None


@cache
def _nvrtc() -> Any:
    if unavailable():
        raise CompilationFailed(MISSING)
    from cuda.bindings import nvrtc

    return nvrtc


@cache
def version() -> tuple[int, int]:
    """Of NVRTC, such as (13, 0)."""
    major, minor = _check(*_nvrtc().nvrtcVersion())
    return major, minor


def compiled(name: str, source: str, headers: Mapping[str, str], options: Sequence[str]) -> Compiled:
    """Compile a source to a cubin.

    Args:
        name: of the source, for messages.
        source: CUDA C++.
        headers: what it includes, by name.
        options: of the compiler; `--gpu-architecture=sm_NN` first.

    Raises:
        CompilationFailed: with the compiler's own words.
    """
    nvrtc = _nvrtc()
    texts, names = _encoded(headers.values()), _encoded(headers)
    (program,) = _check(*nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), len(headers), texts, names))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), _encoded(options))
        log = _output(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        words = log.rstrip(b"\0").decode(errors="replace")
        if int(status):
            raise CompilationFailed(
                f"NVRTC {version()} cannot compile {name} ({options[0]}): {words.strip() or status.name}"
            )
        return Compiled(_output(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), words)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _encoded(texts: Any) -> list[bytes]:
    return [text.encode() for text in texts]


def _output(size_of: Any, get: Any, program: Any) -> bytes:
    (size,) = _check(*size_of(program))
    buffer = bytearray(size)
    _check(*get(program, buffer))
    return bytes(buffer)


def _check(status: Any, *found: Any) -> tuple[Any, ...]:
    """What a call returned beside its status.

    Raises:
        CompilationFailed: its status is an error.
    """
    if int(status):
        raise CompilationFailed(f"NVRTC: {status.name}")
    return found


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

    def compiled(self, architecture: str) -> Compiled:
        """The cubin for `sm_80`, `sm_90` and so on, made now.

        Raises:
            CompilationFailed: NVRTC is missing, does not know the architecture, or found an error.
        """
        return compiled(self.path.name, self.source, self.headers, self.options(architecture))

    def __str__(self) -> str:
        return " ".join([self.path.name, *(f"{name}={value}" for name, value in self.macros)])


def program(name: str, **macros: str | int) -> Program:
    """A file in `kernels/` with these macros."""
    return Program(KERNELS / name, tuple(macros.items()))


def element(dtype: object) -> str:
    """What the kernels call a dtype of torch."""
    return ELEMENTS[str(dtype).removeprefix("torch.")]


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def cubin(program: Program, architecture: str, driver: str, place: Path | None = None) -> bytes:
    """The cubin of a program, from the cache or compiled now.

    Args:
        program: what to compile.
        architecture: `sm_90` and so on.
        driver: its version; a new one needs new cubins.
        place: the folder of the cache; `cubins` in convbench's cache directory when None.

    Raises:
        CompilationFailed: there is no entry, and it cannot be compiled.
    """
    path = entry(program, architecture, driver, place)
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[CHECKSUM:]).digest() == content[:CHECKSUM]:
            return content[CHECKSUM:]
    made = program.compiled(architecture).cubin
    with suppress(OSError):  # no room, no permission
        write_whole(path, hashlib.sha256(made).digest() + made)
    return made


def entry(program: Program, architecture: str, driver: str, place: Path | None = None) -> Path:
    """The file of a cubin in the cache, whether it exists or not."""
    parts = program.digest(architecture), architecture, driver, *map(str, version())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = cache_directory() / "cubins" if place is None else place
    return folder / f"{program.path.stem}-{architecture}-{key[:32]}.cubin"
