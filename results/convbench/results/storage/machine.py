"""What this machine is: processor, memory, GPUs, and a short hash to tell machines apart.

A function returns None, or raises as `environment.attempt` expects, where this machine does not tell.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from pathlib import Path

COMMAND_SECONDS = 20  # nvidia-smi and git answer at once or are stuck
VECTOR_FLAGS = {
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_tile",
    "asimd",
    "sve",
}
GPU_KEYS = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "persistence_mode",
    "compute_mode",
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
    "mig.mode.current",
)


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


def affinity() -> list[int]:
    """Hardware threads this process may use."""
    return sorted(os.sched_getaffinity(0))


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
    limit, used, stat = (read_text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
    if limit is not None and used is not None and limit != "max":
        counts = dict(line.split() for line in (stat or "").splitlines())
        free = min(free, int(limit) - int(used) + int(counts.get("inactive_file", 0)))
    return max(free, 0) / 1e9


def cpu_quota() -> float | None:
    """Cores that the control group allows, None for no limit."""
    quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def memory_limit_gb() -> float | None:
    """Memory that the control group allows, None for no limit."""
    limit = read_text("/sys/fs/cgroup/memory.max")
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
