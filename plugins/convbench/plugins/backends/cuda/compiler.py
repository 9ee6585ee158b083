"""NVRTC, the compiler that is a library: CUDA C++ to a cubin, on machines without nvcc and without a GPU.

torch's CUDA builds bring both NVRTC and `cuda.bindings`, which calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from convbench.registry import ConvbenchError

MISSING = "NVRTC or cuda-bindings is missing: install torch's CUDA build, or convbench[cuda]"


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
