"""NVRTC, the compiler that is a library: CUDA C++ to a cubin, on machines without nvcc and without a GPU.

It comes with torch's CUDA builds. ctypes calls its plain C interface, a dozen functions that have been the same
since CUDA 11.1, so no package between Python and it has to match.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from convbench.registry import ConvbenchError

MISSING = "NVRTC (libnvrtc.so) is missing: install torch's CUDA build, or convbench[cuda]"


class CompilationFailed(ConvbenchError):
    """NVRTC refused a kernel; the text is what it said."""


class Compiled(NamedTuple):
    """A cubin, and what the compiler said of it, registers and spills included."""

    cubin: bytes
    log: str


def find() -> str | None:
    """Where the library is, without loading it; None where there is none."""
    return next((str(path) for path in _candidates()), None)


def _candidates() -> Iterator[Path]:
    """In torch's packages, beside torch itself, and where the dynamic linker looks."""
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(place).glob("*/lib/libnvrtc.so.*"), reverse=True)
    spec = find_spec("torch")  # is not imported by this
    if spec and spec.origin:
        yield from sorted((Path(spec.origin).parent / "lib").glob("libnvrtc*.so*"), reverse=True)
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for toolkit in filter(None, toolkits):
        yield from sorted(Path(toolkit).glob("lib64/libnvrtc.so.*"), reverse=True)
    for folder in (*os.environ.get("LD_LIBRARY_PATH", "").split(":"), "/usr/lib/x86_64-linux-gnu"):
        if folder:
            yield from sorted(Path(folder).glob("libnvrtc.so.*"), reverse=True)


@cache
def unavailable() -> str | None:
    """Why nothing can be compiled here, in one line."""
    if sys.platform == "win32":
        return "NVRTC is not looked for on Windows"
    path = find()
    return MISSING if path is None else None


@cache
def _library() -> ctypes.CDLL:
    path = find()
    if path is None:
        raise CompilationFailed(MISSING)
    for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))  # NVRTC asks for it by name only, and finds it where it is loaded already
    return ctypes.CDLL(path)


@cache
def version() -> tuple[int, int]:
    """Of NVRTC, such as (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def compiled(name: str, source: str, headers: Mapping[str, str], options: Sequence[str]) -> Compiled:
    """Compile a source to a cubin.

    Args:
        name: of the source, for messages.
        source: CUDA C++.
        headers: what it includes, by name.
        options: of the compiler; `--gpu-architecture=sm_NN` among them.

    Raises:
        CompilationFailed: with the compiler's own words.
    """
    library, program = _library(), ctypes.c_void_p()
    texts, names = _strings(headers.values()), _strings(headers)
    create = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names
    )
    _check(create)
    try:
        failed = library.nvrtcCompileProgram(program, len(options), _strings(options))
        log = _output(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
        words = log.rstrip(b"\0").decode(errors="replace")
        if failed:
            raise CompilationFailed(
                f"NVRTC {version()} cannot compile {name} ({options[0]}): {words.strip() or failed}"
            )
        return Compiled(_output(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), words)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(texts: Any) -> Any:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _output(size_of: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.raw


def _check(result: int) -> None:
    if result:
        describe = _library().nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        raise CompilationFailed(f"NVRTC: {describe(result).decode()}")
