"""Settings of the whole process that no backend may change: threads, default dtype, denormals and the like.

They affect every later result, those of other backends included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.dtypes import FLOAT32_PRODUCTS

PRODUCTS = (*FLOAT32_PRODUCTS, ("mkldnn", "matmul"), ("mkldnn", "conv"))
_precision, _set_precision = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
MEMORY: Any = torch.utils.deterministic  # a module that is a class, which type checkers do not see
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
    "the modes that intercept torch's calls": (_modes, None),
}


class GlobalState:
    """The settings as they are when this is made."""

    def __init__(self) -> None:
        self._before = {name: read() for name, (read, _) in SETTINGS.items()}

    def check(self) -> None:
        """Restore settings that were changed since; raise IntegrityError that names them."""
        changes = []
        for name, (read, write) in SETTINGS.items():
            before, now = self._before[name], read()
            if now != before:
                changes.append(f"{name} was changed from {before} to {now}")
                if write is not None:
                    write(before)
        if changes:
            raise IntegrityError("; ".join(changes))


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
