"""Settings of the whole process that no backend may change: threads, default dtype, denormals, hooks and the like.

They affect every later result, those of other backends included.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.dtypes import FLOAT32_PRODUCTS

PRODUCTS = (*FLOAT32_PRODUCTS, ("mkldnn", "matmul"), ("mkldnn", "conv"))
_precision, _set_precision = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
MEMORY: Any = torch.utils.deterministic  # a module that is a class, which type checkers do not see
VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_")
SIGNALS = (
    "SIGINT",
    "SIGTERM",
    "SIGHUP",
    "SIGALRM",
    "SIGVTALRM",
    "SIGPROF",
    "SIGUSR1",
    "SIGUSR2",
    "SIGCHLD",
    "SIGTRAP",
)
SEED = 0x5EED_0F_C0B_BE9C  # no plugin's choice


def _denormals_are_kept() -> bool:
    return bool((torch.full((1,), 2e-38, dtype=torch.float32, device="cpu") * 0.25).ne(0).item())


def _modes() -> int:
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return len(_get_current_function_mode_stack()) + len(_get_current_dispatch_mode_stack())


def _fill() -> bool:
    return bool(MEMORY.fill_uninitialized_memory)


def _set_fill(value: bool) -> None:
    MEMORY.fill_uninitialized_memory = value


@contextmanager
def memory_filled(value: bool) -> Iterator[None]:
    """Whether torch fills new memory with NaN; it does so only where algorithms are deterministic, too."""
    before = _fill()
    _set_fill(value)
    try:
        yield
    finally:
        _set_fill(before)


def _precisions() -> str:
    return ", ".join(f"{backend} {op} {_precision(backend, op)}" for backend, op in PRODUCTS)


def _set_precisions(precisions: str) -> None:
    torch.set_float32_matmul_precision(
        "highest"
    )  # the older settings, which torch refuses to read beside these
    torch._C._set_cudnn_allow_tf32(True)
    for each in precisions.split(", "):
        _set_precision(*each.split())


def _hooks(owner: ModuleType) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """How to read the global hooks that a module keeps, and how to put them back."""
    kinds = {
        name: kept
        for name, kept in vars(owner).items()
        if name.startswith("_global") and isinstance(kept, dict)
    }

    def read() -> dict[str, Any]:
        return {f"{kind} {key}": hook for kind, hooks in kinds.items() for key, hook in hooks.items()}

    def write(before: Mapping[str, Any]) -> None:
        for kind, hooks in kinds.items():
            for key in [key for key in hooks if f"{kind} {key}" not in before]:
                del hooks[key]

    return read, write


def _set_environment(before: Mapping[str, str]) -> None:
    for name in _environment().keys() - before.keys():
        os.environ.pop(name, None)
        os.unsetenv(name)
    os.environ.update(before)


def _environment() -> dict[str, str]:
    """The variables that libraries below torch read, some of them when they are first used.

    They are read where libraries read them: `os.putenv` does not change `os.environ`.
    """
    try:
        environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    except (OSError, ValueError):  # not on this system
        variables = dict(os.environ)
    else:
        lines = map(os.fsdecode, takewhile(bool, map(environ.__getitem__, count())))
        variables = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: value for name, value in variables.items() if name.startswith(VARIABLES)}


def _set_signals(before: Mapping[str, Any]) -> None:
    for name, handler in before.items():
        # None was not set from Python, and cannot be; only the main thread can set any
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.Signals[name], handler)


def _signals() -> dict[str, Any]:
    return {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)}


def _timers() -> dict[str, bool]:
    kinds = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
    return {kind: any(signal.getitimer(getattr(signal, kind))) for kind in kinds if hasattr(signal, kind)}


def _tracers() -> dict[str, Any]:
    """What Python calls at every line or call; a debugger's or a test's coverage is one."""
    tools = getattr(sys, "monitoring", None)  # since Python 3.12
    found: dict[str, Any] = {"profiler": sys.getprofile(), "profiler of threads": threading.getprofile()}
    found |= {"tracer": sys.gettrace(), "tracer of threads": threading.gettrace()}
    return found | {f"tool {tool}": tools.get_tool(tool) for tool in range(6) if tools is not None}


def _set_tracers(before: Mapping[str, Any]) -> None:
    sys.setprofile(before["profiler"])
    threading.setprofile(before["profiler of threads"])
    sys.settrace(before["tracer"])
    threading.settrace(before["tracer of threads"])


def _set_collection(before: tuple[Any, ...]) -> None:
    (gc.enable if before[0] else gc.disable)()
    gc.set_threshold(*before[1:])


def _scheduling(process: int) -> str | None:
    """The policy by which the system gives a process its turn, and its rank; None where there are none."""
    if not hasattr(os, "sched_getscheduler"):
        return None
    return f"{os.sched_getscheduler(process)} {os.sched_getparam(process).sched_priority}"


def _set_scheduling(before: str) -> None:
    policy, rank = map(int, before.split())
    os.sched_setscheduler(0, policy, os.sched_param(rank))


def _autocast() -> dict[str, tuple[bool, torch.dtype]]:
    kinds = ("cpu", "cuda")
    return {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}


def _set_autocast(before: Mapping[str, tuple[bool, torch.dtype]]) -> None:
    for kind, (enabled, dtype) in before.items():
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


Setter = Callable[[Any], object]

# name in messages -> how to read it, and how to restore it
SETTINGS: Mapping[str, tuple[Callable[[], Any], Setter | None]] = {
    "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),  # None ends a mode
    ),
    "whether denormal numbers are kept": (
        _denormals_are_kept,
        lambda kept: torch.set_flush_denormal(not kept),
    ),
    "whether gradients are recorded": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "whether torch's algorithms are deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "whether torch fills new memory": (_fill, _set_fill),
    "the precision of float32 products": (_precisions, _set_precisions),
    "whether cuDNN may choose by trial": (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
    "whether oneDNN is used": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "whether cuDNN is used": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    "whether cuDNN is deterministic": (torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic),
    "whether oneDNN is deterministic": (
        torch._C._get_mkldnn_deterministic,
        torch._C._set_mkldnn_deterministic,
    ),
    "whether NNPACK is used": (torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled),
    "whether inference mode is on": (torch.is_inference_mode_enabled, None),
    "whether autograd looks for anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "what torch casts by itself": (_autocast, _set_autocast),
    "the modes that intercept torch's calls": (_modes, None),
    "what torch does with saved tensors": (
        lambda: torch._C._autograd._top_saved_tensors_default_hooks(True),
        lambda before: torch._C._autograd._pop_saved_tensors_default_hooks(),
    ),
    "the global hooks of torch's modules": _hooks(modules),
    "the global hooks of torch's optimizers": _hooks(optimizers),
    "the number of torch's threads between ops": (torch.get_num_interop_threads, None),
    "the cores that the process may use": (
        lambda: os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        lambda cores: os.sched_setaffinity(0, cores),
    ),
    "the priority of the process": (
        lambda: os.getpriority(os.PRIO_PROCESS, 0),
        lambda priority: os.setpriority(os.PRIO_PROCESS, 0, priority),
    ),
    "how the system schedules the process": (lambda: _scheduling(0), _set_scheduling),
    "how often Python switches threads": (sys.getswitchinterval, sys.setswitchinterval),
    "what traces or profiles Python": (_tracers, _set_tracers),
    "the handlers of signals": (_signals, _set_signals),
    "the timers of the process": (_timers, None),
    "what Python calls when it collects garbage": (
        lambda: tuple(gc.callbacks),
        lambda callbacks: gc.callbacks.__setitem__(slice(None), callbacks),
    ),
    "when Python collects garbage": (lambda: (gc.isenabled(), *gc.get_threshold()), _set_collection),
    "the environment of libraries": (_environment, _set_environment),
}


def _shown(value: Any, other: Any) -> str:
    """A setting in words; of one with parts, those that are not the other's."""
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if name not in other or other[name] != part}
        return ", ".join(f"{name} {_shown(part, None)}" for name, part in parts.items()) or "nothing"
    if isinstance(value, tuple):
        return ", ".join(_shown(part, None) for part in value) or "nothing"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__qualname__} of {value.__module__}"
    return str(value)


class GlobalState:
    """The settings as they are when this is made."""

    def __init__(self) -> None:
        self._before = {name: read() for name, (read, _) in SETTINGS.items()}

    def check(self) -> None:
        """Restore settings that were changed since; raise IntegrityError that names them."""
        changes = self.restore()
        if changes:
            raise IntegrityError("; ".join(changes))

    def restore(self) -> list[str]:
        """Restore settings that were changed since; returns a sentence for each."""
        changes = []
        for name, (read, write) in SETTINGS.items():
            before, now = self._before[name], read()
            if now != before:
                changes.append(f"{name} was changed from {_shown(before, now)} to {_shown(now, before)}")
                if write is not None:
                    write(before)
        return changes


class ParentState:
    """What workers inherit from the process that forks them, as it is when this is made in one of them.

    One that changes it changes the times of all later workers.
    """

    def __init__(self) -> None:
        self._process = os.getppid()
        self._before = self._read()

    def check(self) -> None:
        """Restore what was changed since, as far as the system allows; raise IntegrityError that names it."""
        now = self._read()
        if now == self._before:
            return
        limits = [name for name in now if name.startswith("RLIMIT_")]
        with suppress(PermissionError):
            os.sched_setaffinity(self._process, self._before["the cores"])
            for name in limits:
                resource.prlimit(self._process, getattr(resource, name), self._before[name])
            os.setpriority(os.PRIO_PROCESS, self._process, self._before["the priority"])
        names = ", ".join(name for name in now if now[name] != self._before[name])
        raise IntegrityError(f"{names} of the parent process, which later workers inherit, was changed")

    def _read(self) -> dict[str, Any]:
        if not hasattr(resource, "prlimit"):  # no Linux
            return {}
        limits = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
        return {
            "the cores": os.sched_getaffinity(self._process),
            "the priority": os.getpriority(os.PRIO_PROCESS, self._process),
            "the scheduling": _scheduling(self._process),
            **{name: resource.prlimit(self._process, limit) for name, limit in limits.items()},
        }


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Raise IntegrityError where the code in between changes a setting, or seeds torch's random numbers.

    Drawing random numbers is allowed; the caller's random state is restored afterwards.
    """
    state = GlobalState()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        try:
            yield
        except Exception:
            state.check()  # code that raises must not have changed a setting either
            raise
        seed = torch.initial_seed()
    state.check()
    if seed != SEED:
        raise IntegrityError(f"torch's random numbers were seeded with {seed}")
