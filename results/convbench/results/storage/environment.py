"""What a run ran on: the machine and its software, as far as they change a speed.

`FACTS` has every key of environment.json with its meaning; `collect` reads them. A fact that cannot be read on
this machine is None, so that no run fails because a file of the kernel is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from subprocess import SubprocessError
from typing import Any, NamedTuple

PACKAGES = (
    "convbench", "torch", "torchvision", "numpy", "pandas", "pluggy", "triton", "numba", "llvmlite", "mkl",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas",
)  # fmt: skip
SPEED_VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|BLIS|NUMBA|DNNL|ONEDNN|CUDA|CUDNN|CUBLAS|NVIDIA|TRITON|MALLOC)_"
    r"|TORCH|PYTORCH_|LD_PRELOAD$|PYTHONHASHSEED$|PYTHONMALLOC$"
)
CONTROL_GROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
COMMAND_SECONDS = 20  # nvidia-smi and git answer at once or are stuck
VECTOR_FLAGS = {
    "avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve",
}  # fmt: skip
GPU_KEYS = (
    "name", "driver_version", "memory.total", "power.limit", "persistence_mode", "compute_mode", "clocks.sm",
    "clocks.max.sm", "temperature.gpu", "mig.mode.current",
)  # fmt: skip
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
    except (OSError, ImportError, AttributeError, LookupError, ValueError, RuntimeError, SubprocessError):
        return None


def machine_id() -> str:
    """An `m` and twelve hex digits that differ between machines: a hash of hardware and identity.

    The identity is /etc/machine-id, where there is one; containers of one image share it, or have none, and
    then only the hardware tells machines apart. The GPUs are those of the driver, whatever
    CUDA_VISIBLE_DEVICES hides. Nothing can be read back from the hash.
    """
    facts = [
        read_text("/etc/machine-id"),
        platform.machine(),
        cpu_model(),
        logical_cores(),
        round(memory_gb() or 0),  # a kernel update moves the last megabytes
        gpu_models(),
    ]
    # the letter keeps what reads tables from taking 91681823e703 for a number
    return "m" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def device_name(device: str) -> str:
    """The model of a torch device, such as `Intel(R) Xeon(R) Platinum 8480+` or `NVIDIA H200`."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return cpu_model()
    if kind == "cuda":
        import torch

        try:
            return str(torch.cuda.get_device_name(device))
        except (RuntimeError, AssertionError, ValueError):  # no driver, no such device, torch without CUDA
            return device
    return f"{device} of {cpu_model()}"


def cpu_model() -> str:
    """The processor's model, as the kernel names it."""
    for key in ("model name", "Hardware", "cpu model"):
        if value := cpu_info(key):
            return value
    return platform.processor() or platform.machine() or "unknown processor"


def cpu_info(wanted: str) -> str | None:
    """The first processor's entry in /proc/cpuinfo."""
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return " ".join(value.split()) or None
    return None


def cpu_flags() -> list[str]:
    """The vector instructions that decide which kernels a library picks."""
    return sorted(VECTOR_FLAGS.intersection((cpu_info("flags") or cpu_info("Features") or "").split()))


def physical_cores() -> int | None:
    """Cores of the machine."""
    import psutil

    return psutil.cpu_count(logical=False)


def logical_cores() -> int | None:
    """Hardware threads of the machine."""
    return os.cpu_count()


def memory() -> tuple[float, float]:
    """Bytes of memory that the machine has, and that are free; infinite where it does not tell."""
    import psutil

    try:
        found = psutil.virtual_memory()
        return found.total, found.available
    except (OSError, LookupError, ValueError, psutil.Error):  # no /proc/meminfo, or not as Linux writes it
        pass
    try:
        pages = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return math.inf, math.inf
    total, free = (count * os.sysconf("SC_PAGE_SIZE") if count > 0 else math.inf for count in pages)
    return total, free


def memory_gb() -> float | None:
    """Memory of the machine, None where it does not tell."""
    total, _ = memory()
    return round(total / 1e9, 1) if math.isfinite(total) else None


def available_memory_gb() -> float:
    """Memory that a process can still take, of the machine's or of its control group's, caches of files apart.

    Infinite where nothing tells.
    """
    _, free = memory()
    limit, used, stat = (read_text(CONTROL_GROUP / f"memory.{name}") for name in ("max", "current", "stat"))
    if limit is not None and used is not None and limit != "max":
        counts = dict(line.split() for line in (stat or "").splitlines())
        free = min(free, int(limit) - int(used) + int(counts.get("inactive_file", 0)))
    return max(free, 0) / 1e9


def cpu_quota() -> float | None:
    """Cores that the control group allows, None for no limit."""
    quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def memory_limit_gb() -> float | None:
    """Memory that the control group allows, None for no limit."""
    limit = read_text(CONTROL_GROUP / "memory.max")
    return None if limit in (None, "max") else round(int(limit) / 1e9, 1)


def governors() -> list[str] | None:
    """Frequency governors in use."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return sorted({file.read_text().strip() for file in files}) or None


def frequency_mhz() -> dict[str, int]:
    """Frequency now, lowest and highest; 0 where the machine does not tell."""
    import psutil

    now = psutil.cpu_freq()
    return {"current": round(now.current), "min": round(now.min), "max": round(now.max)}


def turbo() -> bool | None:
    """Whether the processor may exceed its nominal frequency."""
    if no_turbo := read_text("/sys/devices/system/cpu/intel_pstate/no_turbo"):
        return no_turbo == "0"
    boost = read_text("/sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def container() -> str | None:
    """What this process is contained in, as far as it can tell."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    for mark, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if Path(mark).exists():
            return name
    if "microsoft" in (read_text("/proc/version") or "").lower():
        return "wsl"
    return "virtual machine" if "hypervisor" in (cpu_info("flags") or "") else None


def gpu_models() -> list[str]:
    """The models of the NVIDIA GPUs, from the driver."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    texts = [read_text(file) or "" for file in files]
    return [
        line.partition(":")[2].strip()
        for text in texts
        for line in text.splitlines()
        if line.startswith("Model")
    ]


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU."""
    lines = output("nvidia-smi", f"--query-gpu={','.join(GPU_KEYS)}", "--format=csv,noheader").splitlines()
    return [dict(zip(GPU_KEYS, map(str.strip, line.split(",")), strict=False)) for line in lines]


def read_text(path: str | Path) -> str | None:
    """A small file's text without blanks around it, None if it is empty or cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip() or None
    except OSError:
        return None


def output(*command: str) -> str:
    """What a command prints; raises if it is not there, fails or hangs."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True, stdin=subprocess.DEVNULL
    )
    return done.stdout


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
    "container": Fact("container or virtual machine this ran in, as far as it shows", "", container),
    "python": Fact("implementation and version of Python", "", python),
    "cpu_model": Fact("model of the processor", "", cpu_model),
    "cpu_flags": Fact("vector instructions of the processor", "", cpu_flags),
    "physical_cores": Fact("cores of the machine", "cores", physical_cores),
    "logical_cores": Fact("hardware threads of the machine", "threads", logical_cores),
    "affinity": Fact("hardware threads the run could use", "", lambda: sorted(os.sched_getaffinity(0))),
    "cpu_quota": Fact("cores the control group allows", "cores", cpu_quota),
    "memory_gb": Fact("memory of the machine", "GB", memory_gb),
    "memory_limit_gb": Fact("memory the control group allows", "GB", memory_limit_gb),
    "governors": Fact("frequency governors in use", "", governors),
    "frequency_mhz": Fact("processor frequency: now, lowest and highest", "MHz", frequency_mhz),
    "turbo": Fact("whether the processor may exceed its nominal frequency", "", turbo),
    "load_average": Fact("processes running over 1, 5 and 15 minutes", "processes", os.getloadavg),
    "gpus": Fact("each GPU by nvidia-smi: driver, memory, clocks, power, temperature", "", gpus),
    "peaks": Fact(
        "measured by a run: 10^9 operations and 10^9 bytes per second of each device and dtype", "", not_here
    ),
    "planned_processes": Fact("rows of each kind that a run has once it is complete", "", not_here),
    "nodes": Fact("the machines of a run on a cluster, by name, with their devices and peaks", "", not_here),
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
