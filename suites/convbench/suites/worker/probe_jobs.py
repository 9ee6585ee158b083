"""What a worker finds out before anything is measured: the machine, its data, its backends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from convbench.registry import UnknownName, Unsupported, discover
from convbench.registry.conformance.verify import verify
from convbench.registry.discovery.plugins import describe
from convbench.registry.ops.dtypes import arithmetic
from convbench.results.storage.environment import collect, device_name
from convbench.suites.machine.load import allowed_cpus, since, snapshot
from convbench.suites.measure.data import check_images, write_images
from convbench.suites.measure.devices import available_devices, select
from convbench.suites.measure.roofline import Roof, measure_roof
from convbench.suites.worker.setup import Job, set_process
from convbench.suites.worker.verification_steps import Attempts

Send = Callable[[dict[str, Any]], None]


def survey(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Look around: the machine and its devices; and bring the dataset into the data file."""
    found: dict[str, Any] = {
        "environment": collect(),
        "torch_version": torch.__version__,
        "devices": {device: device_name(device) for device in available_devices()},
    }
    root = job["data_dir"]
    dataset = discover().dataset(job["dataset"])
    images = dataset.load(Path(root) if root else None)
    check_images(images, dataset.num_classes)
    with os.fdopen(os.dup(data), "wb") as file:
        found["data"] = write_images(images, file)
    return {"status": "ok", "found": found}


def availability(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Ask backends whether they can run here; an event for each one, so that a crash shows whose it is."""
    registry = discover()
    for name in job["backends"]:
        try:
            reason = registry.backend(name).unavailable()
        except Exception as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
            reason = f"its check for availability failed: {describe(error)}"
        send({"event": "availability", "backend": name, "reason": None if reason is None else str(reason)})
    return {"status": "ok"}


def fit(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Have networks look at an image of the shape they would be given; an event for each that cannot."""
    registry = discover()
    for name, shape in job["networks"].items():
        try:
            model = registry.architecture(name).build(num_classes=job["classes"], in_channels=shape[0])
            with torch.no_grad():
                model.eval()(torch.zeros(2, *shape))
        except Exception as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
            send({"event": "misfit", "architecture": name, "error": describe(error)})
    return {"status": "ok"}


def peaks(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Measure the peaks of a device for one dtype; once more if other programs were in the way."""
    set_process(job)
    numbers = arithmetic(job["dtype"])
    numbers.set()
    device, dtype = torch.device(job["device"]), numbers.tensors
    select(device)
    best: Roof | None = None
    for _ in range(2):
        before = snapshot()
        roof = measure_roof(device, dtype)
        best = roof if best is None else best.joined(roof)
        busy = "busy" in since(before).flags(len(allowed_cpus()))
        if not busy:
            break
    return {"status": "ok", "roof": vars(best), "busy": busy}


def conform(job: Job, send: Send, data: int) -> dict[str, Any]:
    """Verify one backend: an event before and after every step, and one for every outcome at the end."""
    set_process(job)
    present = available_devices()
    if job["device"] not in present and f"{job['device']}:0" not in present:
        raise UnknownName("device", job["device"], present)
    select(torch.device(job["device"]))
    backend = discover().backend(job["backend"])
    if job["device"].partition(":")[0] not in backend.devices:
        raise Unsupported(f"backend {backend.name!r} runs on {', '.join(backend.devices)}")
    reason = backend.unavailable()
    if reason is not None:
        return {"status": "unavailable", "error": reason}
    claimed = backend.dtypes_on(job["device"])
    dtypes = [dtype for dtype in job["dtypes"] or claimed if dtype in claimed]
    if not dtypes:
        raise Unsupported(f"backend {backend.name!r} takes {', '.join(claimed)} on {job['device']}")
    report = verify(
        backend,
        device=job["device"],
        dtypes=dtypes,
        generated=job["generated"],
        seed=job["seed"],
        shrink=True,
        attempt=Attempts(send, job["known"], job["step_seconds"], job["shrink_seconds"]),
    )
    for outcome in report.outcomes:
        send({"event": "outcome", **vars(outcome)})
    accuracy = {op: vars(declared) for op, declared in report.accuracy.items()}
    return {"status": "ok", "derived": list(report.derived), "accuracy": accuracy}
