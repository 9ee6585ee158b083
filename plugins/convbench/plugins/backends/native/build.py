"""Build the library; the build backend calls this when convbench is installed from source or a wheel is made.

One object for each instruction set, which the library chooses among on the machine it runs on, so that what is
built on one machine runs on another. It needs GCC or Clang, for their vector extension, and nothing else: neither
Python's headers nor torch's. This module imports nothing of convbench, for the build backend loads it before that
is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCES = Path(__file__).with_name("core")
LIBRARY = SOURCES / "libconvbench_native.so"

FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
    "-fno-math-errno", "-fno-trapping-math",  # comparisons become vectors; no result changes
)  # fmt: skip
# What every processor of a kind has, whatever CXX or the compiler's defaults say: an instruction that is not there
# ends the process.
X86_64 = ("-march=x86-64", "-mtune=generic")
X86 = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        "-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512",
    ),
}  # fmt: skip


class CannotBuild(Exception):
    """There is no compiler, or it failed; the text says which, and what it said."""


def digest() -> str:
    """What the library is made of, and for what machine, in 16 hexadecimal digits."""
    found = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for path in [Path(__file__), *sorted(SOURCES.glob("*.?pp"))]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def build() -> Path:
    """Compile the sources into the library beside them, unless one that was made of them is there.

    Raises:
        CannotBuild: and there is no library then, not an old one either.
    """
    if LIBRARY.exists() and digest().encode() in LIBRARY.read_bytes():
        return LIBRARY
    LIBRARY.unlink(missing_ok=True)
    compiler = _compiler()
    x86 = platform.machine() in ("x86_64", "AMD64")
    sets: dict[str, tuple[str, ...]] = X86 if x86 else {"baseline": ()}
    flags = (*FLAGS, *(X86_64 if x86 else ()))
    with TemporaryDirectory() as folder:
        objects = [Path(folder) / f"{name}.o" for name in (*sets, "native")]
        commands = [
            [*of_set, f"-DISA=of_{name}", f"-DISA_NAME={name}", SOURCES / "kernels.cpp"]
            for name, of_set in sets.items()
        ]
        dispatch = [f'-DSOURCE_DIGEST="{digest()}"', *(["-DWITH_AVX"] if "avx2" in sets else [])]
        commands.append([*dispatch, SOURCES / "native.cpp"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = zip(commands, objects, strict=True)
            list(pool.map(lambda job: _run([*compiler, *flags, *job[0], "-c", "-o", job[1]]), jobs))
        finished = LIBRARY.with_suffix(f".{os.getpid()}")
        needed = ["-static-libgcc", "-Wl,--as-needed"] if sys.platform == "linux" else []
        try:
            _run([*compiler, "-shared", "-pthread", *needed, "-o", finished, *objects])
            finished.replace(LIBRARY)  # in one step: whoever has the old one loaded keeps it
        finally:
            finished.unlink(missing_ok=True)
    return LIBRARY


def _compiler() -> list[str]:
    if sys.platform == "win32":
        raise CannotBuild("it is not built for Windows")
    for candidate in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    raise CannotBuild("there is no C++ compiler: neither c++ nor g++ nor clang++, nor what CXX names")


def _run(command: list[str | Path]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        words = " ".join(map(str, command[:1]))
        raise CannotBuild(f"{words} failed: {ended.stderr.strip() or ended.returncode}")
