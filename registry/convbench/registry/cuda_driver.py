"""Whether there is a CUDA device, asked of the driver: without torch, and without a context that forks inherit."""

from __future__ import annotations

import ctypes
import os


def no_cuda_device() -> str | None:
    """Why there is no CUDA device for this process, in one line; None where there is one.

    The management library counts the devices. It leaves the process as it was, while `cuInit` would keep every
    process that is forked off later from using CUDA. What `CUDA_VISIBLE_DEVICES` hides is not there.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return f"no CUDA device: CUDA_VISIBLE_DEVICES is {visible!r}"
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "no CUDA device"
    count = ctypes.c_uint()
    if management.nvmlInit_v2() != 0:
        return "no CUDA device"
    try:
        found = management.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 and count.value > 0
    finally:
        management.nvmlShutdown()
    return None if found else "no CUDA device"
