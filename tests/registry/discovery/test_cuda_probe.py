"""Whether there is a CUDA device, as the driver's management library says."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from convbench.registry.discovery import cuda_probe
from convbench.registry.discovery.cuda_probe import no_cuda_device


class Management:
    """The management library of a machine with so many devices, or one whose driver does not answer."""

    def __init__(self, devices: int, answers: bool = True) -> None:
        self._devices, self._answers = devices, answers
        self.open = 0

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's name
        self.open += self._answers
        return 0 if self._answers else 9

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802 - NVML's name
        count._obj.value = self._devices
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802 - NVML's name
        self.open -= 1
        return 0


@pytest.mark.parametrize(
    ("management", "expected"),
    [
        (Management(2), None),
        (Management(0), "no CUDA device"),
        (Management(1, answers=False), "no CUDA device"),
        (None, "no CUDA device"),
    ],
)
def test_the_driver_is_asked(
    management: Management | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Management:
        if management is None:
            raise OSError(f"{name}: cannot open shared object file")
        return management

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert no_cuda_device() == expected
    assert management is None or management.open == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [(("nvidia0", "nvidiactl"), None), (("nvidiactl",), "no CUDA device"), ((), "no CUDA device")],
)
def test_without_the_management_library_the_device_files_tell(
    files: tuple[str, ...], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        if name == "libcuda.so.1":
            return object()  # there, and not called
        raise OSError(f"{name}: cannot open shared object file")

    for name in files:
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cuda_probe, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert no_cuda_device() == expected


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_hidden_devices_are_not_there(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Management(1))
    assert no_cuda_device() == f"no CUDA device: CUDA_VISIBLE_DEVICES is {visible!r}"
