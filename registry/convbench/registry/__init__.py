"""The contract between convbench and its plugins, and the registry that finds them.

Everything a plugin author needs is importable from here; what needs torch is loaded at first use, so that
importing this package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convbench.registry.discovery.cuda_probe import no_cuda_device
from convbench.registry.discovery.plugins import Plugin, Registry, discover
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
    from convbench.registry.authoring.derived_backward import backward_is_derived, derived_backward
    from convbench.registry.conformance.report import Report
    from convbench.registry.conformance.verify import verify
    from convbench.registry.models.factory import create_model, list_models
    from convbench.registry.ops.contract import OPS, Op
    from convbench.registry.routing.dispatch import Routed, unroute, use_backend

_LAZY = {
    "OPS": "ops.contract",
    "Op": "ops.contract",
    "Report": "conformance.report",
    "Routed": "routing.dispatch",
    "backward_is_derived": "authoring.derived_backward",
    "create_model": "models.factory",
    "derived_backward": "authoring.derived_backward",
    "list_models": "models.factory",
    "unroute": "routing.dispatch",
    "use_backend": "routing.dispatch",
    "verify": "conformance.verify",
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
    "unroute",
    "use_backend",
    "verify",
]

PLUGINS = (  # the modules with hooks, for the entry point
    "convbench.registry.cli.summary",
    "convbench.registry.cli.new",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
