"""The jobs before anything is measured: the machine and its data, networks that do not fit, and peaks."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from convbench.registry import discover
from convbench.registry.discovery.plugins import describe
from convbench.registry.ops.dtypes import arithmetic
from convbench.results.storage.environment import collect, device_name
from convbench.suites.machine.load import allowed_cpus, since, snapshot
from convbench.suites.measure.data import check_images, write_images
from convbench.suites.measure.devices import available_devices, select
from convbench.suites.measure.roofline import Roof, measure_roof
from convbench.suites.processes.protocol import (
    Done,
    FitJob,
    Loaded,
    Misfit,
    Peak,
    PeaksJob,
    PluginsJob,
    Send,
    Survey,
    SurveyJob,
)
from convbench.suites.worker.setup import set_process


def survey(job: SurveyJob, send: Send, data: int) -> Survey:
    """Describe the machine and its devices, and write the dataset into the data file."""
    environment = collect()
    devices = {device: device_name(device) for device in available_devices()}
    dataset = discover(distributions=job.distributions).dataset(job.dataset)
    images = dataset.load(Path(job.data_dir) if job.data_dir else None)
    check_images(images, dataset.num_classes)
    with os.fdopen(os.dup(data), "wb") as file:
        written = write_images(images, file)
    return Survey(environment, torch.__version__, devices, written)


def fit(job: FitJob, send: Send, data: int) -> Done:
    """Give networks images of the shape that they would get; an event for each that cannot take them."""
    registry = discover()
    for name, shape in job.networks.items():
        try:
            model = registry.architecture(name).build(num_classes=job.num_classes, in_channels=shape[0])
            with torch.no_grad():
                model.eval()(torch.zeros(2, *shape))
        except Exception as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
            send(Misfit(name, describe(error)))
    return Done()


def load_plugins(job: PluginsJob, send: Send, data: int) -> Loaded:
    """Load every plugin where torch is loaded, and say what that changes."""
    return Loaded({plugin.name: plugin.changes for plugin in discover().interfering})


def peaks(job: PeaksJob, send: Send, data: int) -> Peak:
    """Measure the peaks of a device for one dtype; once more if other programs were in the way."""
    set_process(job.threads)
    numbers = arithmetic(job.dtype)
    numbers.set()
    device, dtype = torch.device(job.device), numbers.tensors
    select(device)
    best: Roof | None = None
    for _ in range(2):
        before = snapshot()
        roof = measure_roof(device, dtype)
        best = roof if best is None else best.joined(roof)
        busy = "busy" in since(before).flags(len(allowed_cpus()))
        if not busy:
            break
    return Peak(vars(best), busy)
