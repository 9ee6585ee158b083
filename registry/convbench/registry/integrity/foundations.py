"""What no plugin may replace: everything that verification, timing, training and reports rest on.

This module imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

from convbench.registry.integrity.fingerprint import Owner, classes_of, loaded

ROOMS = ("convbench.registry", "convbench.suites", "convbench.results")
# whatever verification, timing and training call of torch
_OF_TORCH = (
    "torch.accelerator", "torch.amp", "torch.autograd", "torch.backends", "torch.functional", "torch.nn",
    "torch.optim", "torch.overrides", "torch.random", "torch.testing", "torch.utils.data",
    "torch.utils.flop_counter", "torch._C._nn", "torch._tensor",
)  # fmt: skip
# besides what convbench imports of Python: where a replacement would reach it as well
_OF_PYTHON = (
    "atexit", "builtins", "gc", "json", "json.decoder", "json.encoder", "os", "pickle", "posix", "random",
    "statistics", "struct", "numpy", "psutil",
)  # fmt: skip
_REPLACEABLE = ("logging", "warnings")  # parts of which other people replace for good reasons


def foundations() -> list[Owner]:
    """Everything that verification, timing, training and reports rest on, as far as it is loaded.

    That is convbench itself but for its plugins, the modules of Python that it uses, and torch's layers,
    optimizers, gradients and functions.
    """
    own = loaded(ROOMS)
    used = {each.__name__ for module in own for each in _modules_used(module)}
    used = {name for name in used if name.partition(".")[0] in sys.stdlib_module_names}.union(_OF_PYTHON)
    python = [sys.modules[name] for name in sorted(used.difference(_REPLACEABLE)) if name in sys.modules]
    torchs = loaded(_OF_TORCH)
    modules: list[Owner] = [*python, *torchs, *own]
    classes = [each for module in modules if isinstance(module, ModuleType) for each in classes_of(module)]
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        modules += [torch, torch.Tensor, torch.Generator]
    return [*modules, *classes]


def _modules_used(module: ModuleType) -> Iterator[ModuleType]:
    """The modules that a module has imported, as a whole or a part of."""
    for member in vars(module).values():
        if not isinstance(member, ModuleType):
            member = sys.modules.get(str(getattr(member, "__module__", "")))
        if isinstance(member, ModuleType):
            yield member
