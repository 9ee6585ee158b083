"""What a run ran on: everything about the machine and its software that changes a speed.

`FACTS` names every key of environment.json with its meaning; `collect` fills them in. A fact that cannot be
read on this machine is None: a benchmark never fails for want of a governor file.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from convbench.results.storage import machine
from convbench.results.storage.machine import device_name, machine_id, output

__all__ = ["FACTS", "Fact", "collect", "device_name", "machine_id"]

PACKAGES = (
    "convbench",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pluggy",
    "triton",
    "numba",
    "llvmlite",
    "mkl",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cublas-cu12",
    "nvidia-cublas",
)
SPEED_VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|BLIS|NUMBA|DNNL|ONEDNN|CUDA|CUDNN|CUBLAS|NVIDIA|TRITON|MALLOC)_"
    r"|TORCH|PYTORCH_|LD_PRELOAD$|PYTHONHASHSEED$|PYTHONMALLOC$"
)
SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")


class Fact(NamedTuple):
    """One key of environment.json: what it means, its unit, and how it is read."""

    description: str
    unit: str
    read: Callable[[], Any]


def collect() -> dict[str, Any]:
    """Read every fact about this machine and its software; imports torch."""
    return {name: attempt(fact.read) for name, fact in FACTS.items()}


def attempt(read: Callable[[], Any]) -> Any:
    """What `read` returns, or None where this machine does not tell."""
    try:
        return read()
    except (
        OSError,
        ImportError,
        AttributeError,
        LookupError,
        ValueError,
        RuntimeError,
        subprocess.SubprocessError,
    ):
        return None


def operating_system() -> str:
    """The distribution's name and version."""
    release = attempt(platform.freedesktop_os_release) or {}
    return str(release.get("PRETTY_NAME") or platform.platform())


def python() -> str:
    """Implementation and version of Python."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def torch_facts() -> dict[str, Any]:
    """What torch says of itself."""
    import torch
    from torch.backends import cpu, cudnn, mkldnn

    return {
        "version": torch.__version__,
        "git": torch.version.git_version,
        "cuda": torch.version.cuda,
        "cudnn": attempt(cudnn.version),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "mkldnn": mkldnn.is_available(),
        "cpu_capability": cpu.get_cpu_capability(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def torch_build() -> str:
    """Compiler, libraries and flags of torch's build."""
    import torch

    return str(torch.__config__.show())


def known_faults() -> dict[str, str]:
    """Each known fault of torch or its libraries that concerns this machine, and how to avoid it."""
    from convbench.registry.known_faults import faults_here

    return {str(fault): f"{fault.summary}; to avoid it, {fault.avoid}" for fault in faults_here()}


def packages() -> dict[str, str]:
    """Versions of the installed packages that matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def convbench_commit() -> str | None:
    """The commit of the checkout this package runs from, `-dirty` if changed; None if it is installed."""
    here = Path(__file__).resolve()
    git = ("git", "-C", str(here.parent))
    if not output(*git, "ls-files", here.name):
        return None  # installed inside somebody else's repository
    commit = output(*git, "rev-parse", "HEAD").strip()
    dirty = output(*git, "status", "--porcelain", "--untracked-files=no").strip()
    return f"{commit}-dirty" if dirty else commit


def speed_variables() -> dict[str, str]:
    """Environment variables that change speed; none that might hold a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if SPEED_VARIABLES.match(name) and not any(secret in name for secret in SECRETS)
    }


def not_here() -> None:
    """What only a run finds out, by measuring."""


FACTS: Mapping[str, Fact] = {
    "machine_id": Fact("hash of the hardware and of /etc/machine-id, as in results.csv", "", machine_id),
    "operating_system": Fact("distribution and version", "", operating_system),
    "kernel": Fact("kernel release", "", platform.release),
    "container": Fact("container or virtual machine this ran in, as far as it shows", "", machine.container),
    "python": Fact("implementation and version of Python", "", python),
    "cpu_model": Fact("model of the processor", "", machine.cpu_model),
    "cpu_flags": Fact("vector instructions of the processor", "", machine.cpu_flags),
    "physical_cores": Fact("cores of the machine", "cores", machine.physical_cores),
    "logical_cores": Fact("hardware threads of the machine", "threads", machine.logical_cores),
    "affinity": Fact("hardware threads the run could use", "", machine.affinity),
    "cpu_quota": Fact("cores the control group allows", "cores", machine.cpu_quota),
    "memory_gb": Fact("memory of the machine", "GB", machine.memory_gb),
    "memory_limit_gb": Fact("memory the control group allows", "GB", machine.memory_limit_gb),
    "governors": Fact("frequency governors in use", "", machine.governors),
    "frequency_mhz": Fact("processor frequency: now, lowest and highest", "MHz", machine.frequency_mhz),
    "turbo": Fact("whether the processor may exceed its nominal frequency", "", machine.turbo),
    "load_average": Fact("processes running over 1, 5 and 15 minutes", "processes", os.getloadavg),
    "gpus": Fact("each GPU by nvidia-smi: driver, memory, clocks, power, temperature", "", machine.gpus),
    "peaks": Fact(
        "measured by a run: 10^9 operations and 10^9 bytes per second of each device and dtype", "", not_here
    ),
    "planned_processes": Fact("rows of each kind that a run has once it is complete", "", not_here),
    "torch": Fact("version, CUDA, cuDNN, threads and vector capability of torch", "", torch_facts),
    "torch_build": Fact("how torch was built", "", torch_build),
    "known_faults": Fact(
        "known faults of torch and its libraries that concern this machine", "", known_faults
    ),
    "packages": Fact("versions of the installed packages that matter", "", packages),
    "convbench_commit": Fact(
        "git commit of the checkout that ran, `-dirty` if changed", "", convbench_commit
    ),
    "variables": Fact("environment variables that change speed", "", speed_variables),
    "command": Fact("command line", "", lambda: list(sys.argv)),
}
