"""The conditions of a decision: everything but the call that its fastest backend could depend on."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convbench.plugins.backends.auto.candidates import Candidate, digest_of

SPEED = frozenset(  # names of settings of the process that a speed may depend on
    {
        "the number of torch's threads",
        "whether denormal numbers are kept",
        "whether torch's algorithms are deterministic",
        "the precision of float32 products",
        "whether cuDNN may choose by trial",
        "whether oneDNN is used",
    }
)


def lasting(candidates: Mapping[str, Candidate]) -> dict[str, Any]:
    """The conditions that do not change while a process runs; this imports no torch."""
    return {
        "machine": machine(),
        "torch": _version("torch"),
        "convbench": f"{_version('convbench')}, sources {digest_of('convbench.registry')}",
        "auto": digest_of(__name__),
        "candidates": {name: candidate.fingerprint for name, candidate in sorted(candidates.items())},
    }


def passing(device: str) -> dict[str, Any]:
    """The settings of the process, and the device's name."""
    import torch

    from convbench.registry.integrity.global_state import SETTINGS

    found = {name: str(read()) for name, (read, _) in SETTINGS.items() if name in SPEED}
    kind = torch.device(device).type
    if kind == "cpu":
        return {"device": kind, **found}
    module: Any = getattr(torch, kind)
    name = getattr(module, "get_device_name", lambda _: kind)(torch.device(device))
    return {"device": f"{kind}, {name}", "cudnn": torch.backends.cudnn.version(), **found}


@cache
def machine() -> str:
    """An identity of this machine, its processor and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [_text("/etc/machine-id").strip() or platform.node(), _processor(), platform.machine(), cores]
    return f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}, {_processor()}, {cores} cores"


def _processor() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
