"""Read a GPU's clocks, and why they are slowed, from the driver's management library, without another process.

`nvidia-smi` calls the same library, but takes so long to start that an idle GPU lowers its clocks before. The
library ignores `CUDA_VISIBLE_DEVICES`: a device is found by its UUID, which torch knows. The package
`nvidia-ml-py` wraps the same calls; as an optional dependency it would leave these columns empty for users who
do not install it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

SM_CLOCK, MEMORY_CLOCK = 1, 2
# bits of nvmlDeviceGetCurrentClocksEventReasons that are brakes, in nvidia-smi's words
BRAKES = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


@dataclass(frozen=True)
class Clocks:
    """Clocks in MHz, and which brakes are on; what the driver does not tell is None."""

    gpu_mhz: float | None
    memory_mhz: float | None
    brakes: tuple[str, ...]


def clocks_of(uuid: str, library: str = "libnvidia-ml.so.1") -> Clocks | None:
    """The clocks of the GPU of this UUID, with or without `GPU-`; None where there is no such GPU or library."""
    try:
        nvml: Any = ctypes.CDLL(library)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        handle = ctypes.c_void_p()
        name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
        if nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) != 0:
            return None
        gpu_mhz, memory_mhz = (_clock(nvml, handle, kind) for kind in (SM_CLOCK, MEMORY_CLOCK))
        return Clocks(gpu_mhz, memory_mhz, _brakes(nvml, handle))
    finally:
        nvml.nvmlShutdown()


def _clock(nvml: Any, handle: ctypes.c_void_p, kind: int) -> float | None:
    mhz = ctypes.c_uint()
    found = nvml.nvmlDeviceGetClockInfo(handle, kind, ctypes.byref(mhz)) == 0
    return float(mhz.value) if found else None


def _brakes(nvml: Any, handle: ctypes.c_void_p) -> tuple[str, ...]:
    reasons = ctypes.c_ulonglong()
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        with suppress(AttributeError):  # drivers before 535 know the second name only
            if getattr(nvml, name)(handle, ctypes.byref(reasons)) == 0:
                return tuple(word for bit, word in BRAKES.items() if reasons.value & bit)
    return ()
