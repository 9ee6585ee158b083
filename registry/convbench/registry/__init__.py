"""The contract between convbench and its plugins, and the registry that finds them.

Everything a plugin author needs is importable from here; what needs torch is loaded at first use, so that
importing this package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convbench.registry.cuda_driver import no_cuda_device
from convbench.registry.discovery import Plugin, Registry, discover
from convbench.registry.errors import (
    AmbiguousName,
    ConvbenchError,
    DataError,
    GateFailed,
    NothingRan,
    PluginError,
    UnknownName,
    Unsupported,
    UsageError,
)
from convbench.registry.hookspecs import hookimpl
from convbench.registry.records import Accuracy, Architecture, Backend, Dataset, Images, Problem, Recipe

if TYPE_CHECKING:
    from convbench.registry.conformance import verify
    from convbench.registry.derived import backward_is_derived, derived_backward
    from convbench.registry.models import create_model, list_models
    from convbench.registry.ops import OPS, Op
    from convbench.registry.outcomes import Report
    from convbench.registry.routing import Routed, use_backend

_LAZY = {
    "OPS": "ops",
    "Op": "ops",
    "Report": "outcomes",
    "Routed": "routing",
    "backward_is_derived": "derived",
    "create_model": "models",
    "derived_backward": "derived",
    "list_models": "models",
    "use_backend": "routing",
    "verify": "conformance",
}

__all__ = [
    "OPS",
    "Accuracy",
    "AmbiguousName",
    "Architecture",
    "Backend",
    "ConvbenchError",
    "DataError",
    "Dataset",
    "GateFailed",
    "Images",
    "NothingRan",
    "Op",
    "Plugin",
    "PluginError",
    "Problem",
    "Recipe",
    "Registry",
    "Report",
    "Routed",
    "UnknownName",
    "Unsupported",
    "UsageError",
    "backward_is_derived",
    "create_model",
    "derived_backward",
    "discover",
    "hookimpl",
    "list_models",
    "no_cuda_device",
    "use_backend",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
