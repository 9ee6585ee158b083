"""The compiled library: whether it is there, and its functions as Python calls them.

ctypes and a plain C interface, so that one library serves every version of Python and torch.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

from convbench.plugins.backends.native.build import LIBRARY, digest

HINT = "install convbench from source with GCC or Clang at hand"
NO_MEMORY, TOO_MUCH = 1, 3  # of `Status` in core.hpp
POINTERS = {  # how many tensors, or lists of them, each function takes, after the sizes and before the threads
    "conv2d_served": 0,
    "conv2d": 4,
    "conv2d_input_gradient": 3,
    "conv2d_weight_gradient": 4,
    "max_pool2d": 3,
    "max_pool2d_gradient": 3,
    "avg_pool2d": 3,
    "avg_pool2d_gradient": 3,
    "network": 1,
    "network_gradients": 1,
    "activation_gradient": 3,
}


@cache
def unavailable() -> str | None:
    """Why there are no kernels on this machine, in one line."""
    if not LIBRARY.exists():
        return f"its library was not built; {HINT}"
    try:
        found = _opened().source_digest().decode()
    except (OSError, AttributeError) as error:
        return f"its library cannot be loaded ({error}); {HINT}"
    return None if found == digest() else f"its library belongs to other sources than those beside it; {HINT}"


@cache
def _opened() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for name in ("source_digest", "instruction_set"):
        getattr(library, name).restype = ctypes.c_char_p
    library.use_instruction_set.argtypes = [ctypes.c_char_p]
    library.use_openmp.argtypes = [ctypes.c_void_p]
    for name, pointers in POINTERS.items():
        for dtype in ("float32", "float64"):
            getattr(library, f"{name}_{dtype}").argtypes = [ctypes.c_void_p] * (1 + pointers) + [ctypes.c_int]
    for dtype in ("float32", "float64"):
        kept = getattr(library, f"network_kept_{dtype}")
        kept.argtypes, kept.restype = [ctypes.c_void_p], ctypes.c_int64
    return library


@cache
def _on_torch_threads() -> ctypes.CDLL:
    """The library, on the threads of the OpenMP that torch has loaded, where that can be found."""
    import torch  # noqa: F401 - brings its OpenMP into the process

    library = _opened()
    gomp_parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if gomp_parallel is not None:
        library.use_openmp(ctypes.cast(gomp_parallel, ctypes.c_void_p))
        os.register_at_fork(after_in_child=library.forked)
    return library


@cache
def function(name: str, dtype: Any) -> Any:
    """The function of tensors of a torch dtype: (geometry, addresses..., threads) -> `Status` of core.hpp."""
    return getattr(_on_torch_threads(), f"{name}_{str(dtype).removeprefix('torch.')}")


def instruction_set() -> str:
    """The one in use: `baseline`, `avx2` or `avx512`."""
    return str(_opened().instruction_set().decode())


@cache
def lanes(dtype: Any) -> int:
    """How many numbers of a dtype a register of the instruction set in use holds."""
    width = {"avx512": 64, "avx2": 32}.get(instruction_set(), 16)
    return width // int(dtype.itemsize)


def use_instruction_set(name: str) -> None:
    """Take another one from now on, in the whole process: for tests and comparisons.

    Raises:
        ValueError: this machine has no such set, or the library was not built for it.
    """
    if _opened().use_instruction_set(name.encode()):
        raise ValueError(f"instruction set {name!r} is not there; the best one is {instruction_set()!r}")
    lanes.cache_clear()
