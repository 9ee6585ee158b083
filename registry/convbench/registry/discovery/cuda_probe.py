"""Whether there is a CUDA device, asked of the driver: without torch, and without a context that forks inherit."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

DEVICE_FILES = Path("/dev")


def no_cuda_device() -> str | None:
    """Why there is no CUDA device for this process, in one line; None where there is one.

    The management library counts the devices. It leaves the process as it was, while `cuInit` would keep every
    process that is forked off later from using CUDA. A container may have the driver without that library: there
    the driver's device files tell. What `CUDA_VISIBLE_DEVICES` hides is not there.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return f"no CUDA device: CUDA_VISIBLE_DEVICES is {visible!r}"
    management = _library("libnvidia-ml.so.1")
    if management is None:
        found = any(DEVICE_FILES.glob("nvidia[0-9]*")) and _library("libcuda.so.1") is not None
    else:
        found = _counted(management) > 0
    return None if found else "no CUDA device"


def _counted(management: Any) -> int:
    """How many devices the management library knows; none where it does not answer."""
    count = ctypes.c_uint()
    if management.nvmlInit_v2() != 0:
        return 0
    try:
        return count.value if management.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else 0
    finally:
        management.nvmlShutdown()


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
