"""Where the backend runs: on CUDA devices, and on the CPU under Triton's interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec

from convbench.registry import no_cuda_device


def interpreted() -> bool:
    """Whether this process interprets kernels: `TRITON_INTERPRET=1`, as Triton reads it when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "").strip().lower() in ("1", "true", "on")


def unavailable() -> str | None:
    """Why there are no kernels on this machine, in one line."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if interpreted() else no_cuda_device()
