"""The driver's management library, by a fake of it that a C compiler makes: the calls are the real ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from convbench.suites.machine import load
from convbench.suites.machine.load import since, snapshot
from convbench.suites.machine.nvml import Clocks, clocks_of
from convbench.suites.measure import devices

LIBRARY = """
#include <string.h>
typedef void *device;
static int open_ = 0;
int nvmlInit_v2(void) { open_ = 1; return 0; }
int nvmlShutdown(void) { open_ = 0; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, device *found) {
    if (!open_ || strcmp(uuid, "GPU-1234")) return 6;
    *found = (device)0x7fff12345678;
    return 0;
}
int nvmlDeviceGetClockInfo(device of, int kind, unsigned *mhz) {
    if (of != (device)0x7fff12345678) return 2;
    *mhz = kind == 1 ? 1980 : 2619;
    return 0;
}
int nvmlDeviceGetCurrentClocks%sReasons(device of, unsigned long long *reasons) {
    *reasons = 0x1 | 0x4 | 0x40;  /* idle is no brake */
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("name", ["Event", "Throttle"])
def test_clocks_and_brakes_are_read(name: str, tmp_path: Path) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libfake-ml.so"
    source.write_text(LIBRARY % name, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    expected = Clocks(1980.0, 2619.0, ("sw_power_cap", "hw_thermal_slowdown"))
    assert clocks_of("1234", str(library)) == clocks_of("GPU-1234", str(library)) == expected
    assert clocks_of("5678", str(library)) is None


def test_no_library_is_no_clocks() -> None:
    assert clocks_of("1234", "libno-such-library.so.1") is None


def test_brakes_before_and_after_are_flagged_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([Clocks(1980.0, 2619.0, ()), Clocks(1410.0, 2619.0, ("sw_power_cap",))])
    monkeypatch.setattr(devices, "gpu_uuid", lambda device: "GPU-1234")
    monkeypatch.setattr(load, "clocks_of", lambda uuid: next(readings))
    monkeypatch.setattr(load, "gpu_braked", lambda device: None)
    found = since(snapshot("cuda:1"), "cuda:1")
    assert (found.gpu_mhz, found.gpu_memory_mhz) == (1410.0, 2619.0)
    assert found.throttle_reasons == "sw_power_cap"
    assert "throttled" in found.flags(2)
    assert since(snapshot()).gpu_mhz is None
