"""Find out before the first measurement: the machine, its devices, the dataset, and what cannot run here.

Plugin code does not run in this process: workers are asked, so that a plugin which hangs or crashes costs a
sentence and not the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbench.registry import DataError
from convbench.suites.processes.protocol import Event
from convbench.suites.processes.supervisor import Supervisor
from convbench.suites.runner.progress import Watcher

SURVEY_SECONDS = 600.0  # a first use may download the dataset
PEAKS_SECONDS = 60.0  # it takes one or two; a dtype that the device has to emulate, more
FIT_SECONDS = 60.0
AVAILABILITY_SECONDS = 60.0  # a backend may import a compiler, and a compiler start a GPU


@dataclass(frozen=True)
class Survey:
    """What was found; `devices` maps each to its model's name, `data` is what workers need to map the dataset."""

    environment: Mapping[str, Any]
    torch_version: str
    devices: Mapping[str, str]
    data: Mapping[str, Any]

    @property
    def train_images(self) -> int:
        """The size of the training set."""
        return int(self.data["shapes"]["train_images"][0])

    @property
    def test_images(self) -> int:
        """The size of the test set."""
        return int(self.data["shapes"]["test_images"][0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.data["shapes"]["train_images"][-3:]
        return int(channels), int(height), int(width)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the test images, in pixels."""
        height, width = self.data["shapes"]["test_images"][-2:]
        return int(height), int(width)


def look_around(host: Supervisor, watcher: Watcher, dataset: str, data_dir: Path | str | None) -> Survey:
    """Have a worker describe the machine and fetch the dataset into the host's data file.

    Raises:
        DataError: the dataset cannot be loaded.
    """
    found: Event = {}

    def on_event(event: Event) -> None:
        if event.get("event") == "note":
            watcher.note(str(event.get("text")))
        elif event.get("event") == "end":
            found.update(event)

    job = {"kind": "survey", "dataset": dataset, "data_dir": str(data_dir) if data_dir is not None else None}
    end = host.run(job, SURVEY_SECONDS, on_event, may_write_data=True)
    if found.get("status") != "ok":
        reason = found.get("error", f"the process that loads it {end.description}")
        raise DataError(reason if found.get("ours") else f"dataset {dataset!r} cannot be loaded: {reason}")
    return Survey(**found["found"])


def find_unavailable(host: Supervisor, backends: Sequence[str]) -> dict[str, str]:
    """Why backends cannot run here, by name; those that can are left out."""
    answers: dict[str, str | None] = {}
    ending: Event = {}

    def on_event(event: Event) -> None:
        if event.get("event") == "availability":
            answers[event["backend"]] = event["reason"]
        elif event.get("event") == "end":
            ending.update(event)

    while waiting := [name for name in backends if name not in answers]:
        ending.clear()
        end = host.run({"kind": "availability", "backends": waiting}, AVAILABILITY_SECONDS, on_event)
        silent = next((name for name in waiting if name not in answers), None)
        if silent is not None:  # the others are asked by another worker
            reason = ending.get("error", f"its process {end.description}")
            answers[silent] = f"its check for availability failed: {reason}"
    return {name: reason for name, reason in answers.items() if reason is not None}


def find_misfits(
    host: Supervisor, networks: Mapping[str, tuple[int, int, int]], classes: int
) -> dict[str, str]:
    """Why networks cannot take images of these shapes (C, H, W), by name; those that can are left out."""
    misfits: dict[str, str] = {}

    def on_event(event: Event) -> None:
        if event.get("event") == "misfit":
            misfits[event["architecture"]] = event["error"]

    host.run({"kind": "fit", "networks": networks, "classes": classes}, FIT_SECONDS, on_event)
    return misfits


Peaks = dict[str, dict[str, dict[str, float]]]


def find_peaks(
    host: Supervisor,
    watcher: Watcher,
    wanted: Iterable[tuple[str, str]],
    *,
    threads: int | None,
    memory_mb: int | None,
) -> Peaks:
    """The measured peaks of the (device, dtype) pairs that are wanted: `{device: {dtype: {...}}}`.

    Where other programs are in the way it is tried again, once. A pair that cannot be measured is left out.
    """
    peaks: Peaks = {}
    for device, dtype in sorted(set(wanted)):
        job = {
            "kind": "peaks",
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "memory_mb": memory_mb if device == "cpu" else None,
        }
        ending: Event = {}

        def on_event(event: Event, ending: Event = ending) -> None:
            if event.get("event") == "end":
                ending.update(event)

        end = host.run(job, PEAKS_SECONDS, on_event)
        if ending.get("status") != "ok":
            reason = ending.get("error", f"the process that measures it {end.description}")
            watcher.note(f"no roofline for {dtype} on {device}: {reason}")
            continue
        if ending["busy"]:
            watcher.note(
                f"other programs are running: {device} may do more {dtype} per second than its roofline says"
            )
        peaks.setdefault(device, {})[dtype] = ending["roof"]
    return peaks
